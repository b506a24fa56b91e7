"""TOML read for its values and their places: the standard library judges it, and forgets where."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from conformance.scan.reading.files.pieces import FileError, Setting

_TOKEN = re.compile(
    r'(?P<text>"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\')'
    r"|(?P<comment>#[^\n]*)|(?P<line>\n)|(?P<mark>[\[\]{},=.])|(?P<bare>[^\s\[\]{},=#\"']+)",
    re.DOTALL,
)
_AT_LINE = re.compile(r"at line (\d+)")
Token = tuple[str, str, int, int]


def settings(text: str) -> list[Setting]:
    """Every value that is a text, a number or a truth; raises FileError."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = _AT_LINE.search(str(error))
        raise FileError(f"not TOML: {error}", int(line[1]) if line else 1) from None
    except RecursionError:
        raise FileError("not TOML: nested too deeply") from None
    tokens = [
        (match.lastgroup or "", match[0], match.start(), match.end())
        for match in _TOKEN.finditer(text)
        if match.lastgroup != "comment"
    ]
    return list(_Reader(tokens).statements())


def _plain(token: Token) -> str:
    kind, text, _, _ = token
    if kind != "text":
        return text
    several = text.startswith(('"""', "'''"))
    if not several and (text[0] == "'" or "\\" not in text):
        return text[1:-1]
    value: str = tomllib.loads(f"x = {text}")["x"]
    return value


class _Reader:
    """Walks the tokens of a text that is known to be valid."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.arrays: dict[tuple[str, ...], int] = {}

    def _look(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def statements(self) -> Iterator[Setting]:
        table: tuple[str, ...] = ()
        while self.at < len(self.tokens):
            if self._look() == "\n":
                self.at += 1
            elif self._look() == "[":
                table = self._header()
            else:
                keys = self._keys("=")
                self.at += 1
                yield from self._value((*table, *keys))

    def _header(self) -> tuple[str, ...]:
        """The keys of a table, with the number of an array's item behind its name."""
        double = self.tokens[self.at + 1][1] == "["
        self.at += 2 if double else 1
        keys = self._keys("]")
        self.at += 2 if double else 1
        if double:
            number = self.arrays.get(keys, 0)
            self.arrays[keys] = number + 1
            return (*keys, f"[{number}]")
        return keys

    def _keys(self, end: str) -> tuple[str, ...]:
        keys: list[str] = []
        while self._look() != end:
            token = self.tokens[self.at]
            if token[1] != ".":
                keys += token[1].strip(".").split(".") if token[0] == "bare" else [_plain(token)]
            self.at += 1
        return tuple(keys)

    def _value(self, keys: tuple[str, ...]) -> Iterator[Setting]:
        kind, text, start, end = token = self.tokens[self.at]
        self.at += 1
        if text in ("[", "{") and kind == "mark":
            yield from self._items(keys, text == "[")
            return
        while self._look() == "." or (kind == "bare" and self._touches(end)):
            end = self.tokens[self.at][3]  # the parts of a number or a date
            self.at += 1
        yield Setting(keys, _plain(token), start, end)

    def _touches(self, end: int) -> bool:
        following = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", -1, -1)
        return following[0] == "bare" and following[2] == end

    def _items(self, keys: tuple[str, ...], is_list: bool) -> Iterator[Setting]:
        number = 0
        while self._look() not in ("]", "}"):
            if self._look() in ("\n", ","):
                self.at += 1
                continue
            inner: tuple[str, ...] = (f"[{number}]",)
            if not is_list:
                inner = self._keys("=")
                self.at += 1
            yield from self._value((*keys, *inner))
            number += 1
        self.at += 1
