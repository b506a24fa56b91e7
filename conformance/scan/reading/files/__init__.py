"""From the text of files that are not Python to settings, requirements and commands."""
