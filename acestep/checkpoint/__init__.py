"""Checkpoints: found, read, adapted."""
