"""Images at rest: the manifest, the decoded store, splits and samplers, the phantom generator."""
