"""Checkpoints and adapters: found, fetched, recognised, and read into modules."""
