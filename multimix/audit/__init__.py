"""The privacy audit: what an auditor can show of a site without trusting its trainer."""
