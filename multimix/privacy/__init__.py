"""The privacy core: private training, what it costs, and the ledger that remembers it."""
