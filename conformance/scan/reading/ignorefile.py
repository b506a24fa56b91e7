"""Patterns as in .gitignore: which paths they match, without asking git."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[str]
    negated: bool
    folders_only: bool


def _bracket(text: str, at: int) -> tuple[str, int]:
    """Regular expression of a ``[...]`` class and the index behind it; literal if unclosed."""
    end = at + 1
    if end < len(text) and text[end] in "!^":
        end += 1
    if end < len(text) and text[end] == "]":
        end += 1
    end = text.find("]", end)
    if end < 0:
        return re.escape("["), at + 1
    body = text[at + 1 : end]
    negated = body[:1] in ("!", "^")
    body = (body[1:] if negated else body).replace("\\", "\\\\").replace("[", "\\[")
    return f"(?!/)[{'^' if negated else ''}{body}]", end + 1


def _translate(text: str) -> str:
    """Regular expression for the part of a pattern between its slashes and stars."""
    out: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if text.startswith("**/", at) and (at == 0 or text[at - 1] == "/"):
            out.append("(?:[^/]+/)*")
            at += 3
        elif text.startswith("/**", at) and at + 3 == len(text):
            out.append("/.+")
            at += 3
        elif char == "*":
            while text.startswith("*", at):
                at += 1
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
            at += 1
        elif char == "[":
            piece, at = _bracket(text, at)
            out.append(piece)
        elif char == "\\" and at + 1 < len(text):
            out.append(re.escape(text[at + 1]))
            at += 2
        else:
            out.append(re.escape(char))
            at += 1
    return "".join(out)


def _parse(line: str) -> _Pattern | None:
    text = line.rstrip("\r\n")
    while text.endswith(" ") and not text.endswith("\\ "):
        text = text[:-1]
    if not text or text.startswith("#"):
        return None
    negated = text.startswith("!")
    text = text[1:] if negated else text
    folders_only = text.endswith("/")
    text = text.rstrip("/") if folders_only else text
    if not text:
        return None
    anchored = "/" in text
    body = _translate(text.removeprefix("/"))
    prefix = "" if anchored else "(?:.*/)?"
    try:
        return _Pattern(re.compile(f"{prefix}{body}\\Z", re.DOTALL), negated, folders_only)
    except re.error:
        return None  # a reversed range such as [z-a] matches nothing


class Patterns:
    """An ordered list of patterns; the last that matches decides."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._patterns = [pattern for line in lines if (pattern := _parse(line)) is not None]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def decide(self, path: str, is_folder: bool) -> bool | None:
        """True: left out; False: brought back by ``!``; None: no pattern speaks of it.

        ``path`` is relative to the patterns' folder, with forward slashes.
        """
        for pattern in reversed(self._patterns):
            if pattern.folders_only and not is_folder:
                continue
            if pattern.regex.match(path):
                return not pattern.negated
        return None

    def match(self, path: str, is_folder: bool) -> bool:
        """Whether the path or one of the folders above it is left out."""
        parts = path.split("/")
        for end in range(1, len(parts)):
            if self.decide("/".join(parts[:end]), True):
                return True
        return bool(self.decide(path, is_folder))
