"""The site agent: the process that holds images, ledger and policy, and has no network."""
