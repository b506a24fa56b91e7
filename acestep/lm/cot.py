"""The chain-of-thought block: its fields, their ranges, how it is written and read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from acestep.errors import RequestError
from acestep.gpu_config import MAX_DURATION, MIN_DURATION
from acestep.song import normalise
from acestep.song.request import BPM_RANGE, LANGUAGES, TIME_SIGNATURES, check_range

METAS = ("bpm", "duration", "keyscale", "timesignature")
FIELDS = ("bpm", "caption", "duration", "keyscale", "language", "timesignature")
"""The fields in the order of the block, which is alphabetical."""

NOTES = tuple("ABCDEFG")
ACCIDENTALS = ("", "#", "b", "♯", "♭")
KEYS = tuple(
    f"{note}{sign} {mode}" for note in NOTES for sign in ACCIDENTALS for mode in ("major", "minor")
)
MIN_PLANNED_DURATION = 10
"""Seconds: the shortest song that the model plans by itself."""

OPEN, CLOSE = "<think>", "</think>"
_CODE = re.compile(r"<\|audio_code_\d+\|>")
_CONTROL = re.compile(r"<\|[^|<>]*\|>|</?think>")
_FIELD = re.compile(r"([A-Za-z_]+)[ \t]*:(.*)")
_LYRIC_HEADING = re.compile(r"\A\s*#\s*Lyrics?\s*(?:\n|\Z)", re.IGNORECASE)


def known_fields(metadata: Mapping[str, Any] | None, max_duration: float) -> dict[str, Any]:
    """The fields that a caller gave, checked; empty, None, `N/A` and `auto` mean not given.

    Args:
        metadata: any of `FIELDS`; other names are refused.
        max_duration: longest song of the memory tier, seconds.

    Raises:
        RequestError: an unknown field, or a value out of its range.
    """
    fields: dict[str, Any] = {}
    for name, value in (metadata or {}).items():
        if name not in FIELDS:
            raise RequestError(f"unknown field '{name}'; choose from {', '.join(FIELDS)}")
        read = _checked(name, value, max_duration)
        if read not in (None, ""):
            fields[name] = read
    return fields


def block(fields: Mapping[str, Any]) -> str:
    """The whole block as the model writes it: sorted YAML between the think tags."""
    values = {name: _plain(name, fields[name]) for name in FIELDS if name in fields}
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=True) if values else ""
    return f"{OPEN}\n{text}{CLOSE}"


def lines_of(name: str, value: Any) -> str:
    """One field as YAML, with its newline."""
    text: str = yaml.safe_dump({name: _plain(name, value)}, allow_unicode=True)
    return text


def parse(text: str) -> tuple[dict[str, Any], str]:
    """Read metadata and audio codes out of anything the model may have written.

    Half a block, unknown fields, values of the wrong type or out of range, and any kind of
    newline are tolerated: what cannot be used is left out.

    Returns:
        (fields among `FIELDS` with their proper types, the audio codes as one text).
    """
    text = _unix(text)
    fields: dict[str, Any] = {}
    for name, lines in _entries(_inside(text)):
        value = _read(name, lines)
        if value is not None:
            fields.setdefault(name, value)
    return fields, "".join(_CODE.findall(text))


def parse_lyrics(text: str) -> str:
    """The lyrics that follow the block, without their heading and control tokens."""
    after = _unix(text).rpartition(CLOSE)[2] if CLOSE in text else ""
    return _LYRIC_HEADING.sub("", _CONTROL.sub("", after)).strip()


def without_control_tokens(text: str) -> str:
    """A user's text with nothing in it that the tokenizer would take for a control token."""
    text = _unix(text)
    while (cleaned := _CONTROL.sub("", text)) != text:
        text = cleaned
    return text


def _checked(name: str, value: Any, max_duration: float) -> Any:
    """A field as it is used; None or empty where it is not given."""
    if isinstance(value, str):
        value = without_control_tokens(value)
    if name == "bpm":
        return normalise.bpm(value)
    if name == "duration":
        seconds = normalise.duration(value)
        check_range("duration", seconds, MIN_DURATION, min(max_duration, MAX_DURATION), "seconds")
        return seconds
    if name == "caption":
        return "" if normalise.given(value) is None else normalise.text("caption", value).strip()
    if name == "language":
        # A caller who names no language and one who says that it is unknown are not the same.
        return None if normalise.given(value) is None else normalise.language(value)
    return {"keyscale": normalise.key, "timesignature": normalise.time_signature}[name](value, name)


def _plain(name: str, value: Any) -> Any:
    """A value as the block holds it: numbers as integers."""
    return round(float(value)) if name in ("bpm", "duration", "timesignature") else str(value)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _inside(text: str) -> str:
    """The text of the block, whose opening, closing or both may be missing."""
    start = text.find(OPEN)
    text = text[start + len(OPEN) :] if start >= 0 else text
    text = text.partition(CLOSE)[0]
    code = _CODE.search(text)
    return text[: code.start()] if code else text


def _entries(text: str) -> list[tuple[str, list[str]]]:
    """Each known field with the lines of its value; indented lines continue a field."""
    entries: list[tuple[str, list[str]]] = []
    current: list[str] | None = None
    for line in text.split("\n"):
        match = _FIELD.match(line)
        if match:
            current = [match[2].strip()]
            entries.append((match[1].lower(), current))
        elif current is not None and line[:1] in (" ", "\t"):
            current.append(line.strip())
        elif line.strip():
            current = None
    return [entry for entry in entries if entry[0] in FIELDS]


def _read(name: str, lines: list[str]) -> Any:
    value = " ".join(line for line in lines if line)
    if value[:1] in ("'", '"'):
        value = _unquoted("\n  ".join(lines)) or value.strip("'\"")
    value = _CONTROL.sub("", value).strip()
    if name == "caption":
        return value or None
    if name in ("bpm", "duration"):
        low, high = BPM_RANGE if name == "bpm" else (MIN_PLANNED_DURATION, MAX_DURATION)
        match = re.fullmatch(r"(\d{1,4})(?:\.\d+)?(?: ?(?:bpm|s|seconds))?", value, re.IGNORECASE)
        return int(match[1]) if match and low <= int(match[1]) <= high else None
    if name == "timesignature":
        value = value.partition("/")[0].strip()
    allowed = {"keyscale": KEYS, "language": LANGUAGES, "timesignature": TIME_SIGNATURES}[name]
    return value if value in allowed else None


def _unquoted(text: str) -> str | None:
    """The value of a quoted YAML scalar, or None when it is not one."""
    try:
        value = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return value if isinstance(value, str) else None
