"""The signed bundle of evidence, and its page."""
