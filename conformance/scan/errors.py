"""What the scanner raises when it cannot do what it was asked for."""

from __future__ import annotations


class ConfigError(Exception):
    """The run was asked for something that it cannot do; the text is one line for the user."""
