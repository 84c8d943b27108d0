"""The coordinator: the round loop, admission, aggregation, checkpoints and the report."""
