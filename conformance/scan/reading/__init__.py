"""From bytes to syntax: which files, what text, which parts of it."""
