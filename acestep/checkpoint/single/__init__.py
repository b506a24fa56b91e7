"""Single-file checkpoints, as ComfyUI keeps them: all in one, or the parts in files of their own."""
