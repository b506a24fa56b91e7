"""From facts to findings: the walk over a file, the rules, and what silences them."""
