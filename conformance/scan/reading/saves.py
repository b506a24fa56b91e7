"""Where the tensors lie that a file saves with ``torch.save``, read from its bytes."""

from __future__ import annotations

import re

_CALL = b"torch.save("
_HOST = rb"(?:\.cpu\(\)|\.to\(\s*(?:device\s*=\s*)?[\"']cpu[\"']|\.numpy\(\)|map_location\s*=\s*[\"']cpu)"
_ON_HOST = re.compile(_HOST)
_ON_DEVICE = re.compile(rb"\.cuda\(|[\"']cuda|state_dict\(")
_ENTRY = re.compile(rb"[\"'](\w+)[\"']\s*:\s*([^,{}]+)")
_NAME = re.compile(rb"[A-Za-z_]\w*")
_DEF = re.compile(rb"^[ \t]*(?:async[ \t]+)?def ", re.MULTILINE)
#: Further back or on than so many bytes nothing is looked for.
_FAR = 4000


def saves_of(data: bytes) -> tuple[str, ...]:
    """What each call saves, as ``WHERE:KEY``: ``host``, ``device`` or nothing where that is not
    seen, and the key of a table that is written out there (none for the call as a whole)."""
    found: set[str] = set()
    at = data.find(_CALL)
    while at >= 0:
        first = at + len(_CALL)
        saved = _argument(data, first)
        area = data[max(0, at - _FAR) : at]
        heads = [match.start() for match in _DEF.finditer(area)]
        area = area[heads[-1] :] if heads else area
        entries = {key.decode(): _where(value, area) for key, value in _ENTRY.findall(saved)}
        found.update(f"{where}:{key}" for key, where in entries.items())
        found.add(f"{_whole(saved, entries, area)}:")
        at = data.find(_CALL, first)
    return tuple(sorted(found))


def _whole(saved: bytes, entries: dict[str, str], area: bytes) -> str:
    if not entries:
        return _where(saved, area)
    kinds = set(entries.values())
    return "device" if "device" in kinds else "host" if "host" in kinds else ""


def _argument(data: bytes, first: int) -> bytes:
    """The first argument of a call."""
    depth = 0
    for at in range(first, min(len(data), first + _FAR)):
        mark = data[at : at + 1]
        if mark in b"([{":
            depth += 1
        elif mark in b")]}":
            depth -= 1
        if depth < 0 or (depth == 0 and mark == b","):
            return data[first:at]
    return b""


def _where(value: bytes, area: bytes) -> str:
    """Where a value lies: by itself, or by the lines before it that make what it names."""
    if _ON_HOST.search(value):
        return "host"
    name = _NAME.search(value)
    made = b""
    if name is not None:
        word = re.escape(name[0])
        lines = rb"^.*\b" + word + rb"\b.*$"
        made = b"\n".join(re.findall(lines, area, re.MULTILINE))
    if _ON_HOST.search(made):
        return "host"
    return "device" if _ON_DEVICE.search(value) or _ON_DEVICE.search(made) else ""
