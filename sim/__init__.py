"""The laboratory: the same server and client code run in one process, on real sources as hospitals."""
