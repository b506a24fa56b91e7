"""Lines that go on behind a backslash, joined, each with the offsets of its pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator

_CONTINUED = re.compile(r"\\[ \t]*(?:\r\n|\r|\n)")


def logical_lines(text: str) -> Iterator[tuple[str, int]]:
    """Each line with its start; what a backslash joins keeps its length, so offsets stay true."""
    joined = _CONTINUED.sub(lambda match: " " * len(match[0]), text)
    at = 0
    for line in joined.splitlines(keepends=True):
        yield line.rstrip("\r\n"), at
        at += len(line)
