"""The subcommands of `acestep`, one module each: `add_parser` declares, `run` does."""
