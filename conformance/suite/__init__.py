"""The cases: one file an area, run on every target, against public names only."""
