"""Buffered asynchronous aggregation as a pure state machine."""
