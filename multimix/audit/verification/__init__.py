"""What a ledger shows by itself, and held against the heads that the server countersigned."""
