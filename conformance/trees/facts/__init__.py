"""The facts of the note "MPS Support (macOS)", each asked of any tree without its weights."""
