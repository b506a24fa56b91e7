"""Names of fields that a file places something with, read from its bytes: for every file."""

from __future__ import annotations

import re

#: ``.to(cfg.where)``, ``device=cfg["where"]``: each begins with a literal, which is found quickly.
_PLACING = (
    (b".to(", re.compile(rb"\.to\(\s*([A-Za-z_][\w.]*)(?:\.(\w+)|\[[\"'](\w+)[\"']\])\s*[,)]")),
    (b"device=", re.compile(rb"device=\s*([A-Za-z_][\w.]*)(?:\.(\w+)|\[[\"'](\w+)[\"']\])\s*[,)]")),
)
_OWN = (b"self", b"cls", b"torch")


def fields_of(data: bytes) -> dict[str, str]:
    """The fields of other objects by which something is placed, and by what: ``to()``."""
    found: dict[str, str] = {}
    for word, pattern in _PLACING:
        if word not in data:
            continue
        for match in pattern.finditer(data):
            name = (match[2] or match[3]).decode()
            if match[1] not in _OWN and "device" not in name.lower() and name != "dtype":
                found.setdefault(name, "to()" if word[:1] == b"." else "device=")
    return found
