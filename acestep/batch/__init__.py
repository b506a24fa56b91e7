"""Many songs from a file of prompts, on every device there is, through kills and restarts."""
