"""Bytes of a file as text: encodings, line starts and the way back to character offsets."""

from __future__ import annotations

import bisect
import codecs
import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

#: Encodings whose bytes can be parsed as they are: UTF-8 and what is a part of it.
AS_UTF8 = ("utf-8", "utf-8-sig", "ascii")
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_TEXTS = re.compile(r"(\"{3}|'{3}).*?\1|#[^\n]*", re.DOTALL)
_NEWLINE = re.compile(r"\r\n|\r|\n")


class SourceError(Exception):
    """The bytes are not Python text; ``line`` counts from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


#: By path, what an editor holds that has not written the file yet.
_UNSAVED: dict[str, bytes] = {}


@contextlib.contextmanager
def unsaved(path: str, data: bytes) -> Iterator[None]:
    """Read ``data`` where a file is asked for, in this process and those that it forks."""
    _UNSAVED[path] = data
    try:
        yield
    finally:
        del _UNSAVED[path]


def is_unsaved(path: str) -> bool:
    """Whether a file is read as it will be, not as it is."""
    return path in _UNSAVED


def read_bytes(path: str) -> bytes:
    """Content of a regular file; raises OSError, also for pipes and devices, which never end."""
    if path in _UNSAVED:
        return _UNSAVED[path]
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"not a regular file: {path}")
        return stream.read()


def without_texts(text: str) -> str:
    """Source without its long texts and its comments, by their marks alone."""
    return _TEXTS.sub("", text)


def split_lines(text: str) -> list[str]:
    """Lines without their ends, split where Python splits them and nowhere else."""
    return _NEWLINE.split(text) if "\r" in text else text.split("\n")


def encoding_of(data: bytes) -> str:
    """Encoding that a file declares (BOM, then the PEP 263 comment), else UTF-8.

    Raises SourceError for an encoding that Python does not know.
    """
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for line in data.split(b"\n", 2)[:2]:
        match = _COOKIE.match(line)
        if match is not None:
            name = match[1].decode("ascii", "replace")
            try:
                return codecs.lookup(name).name
            except LookupError:
                raise SourceError(f"unknown encoding {name!r}") from None
        if line.strip() and not line.lstrip().startswith(b"#"):
            break
    return "utf-8"


def decode(data: bytes) -> tuple[str, str]:
    """Text and encoding of Python source bytes.

    Raises SourceError when the bytes do not fit the encoding or hold a NUL.
    """
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError, ValueError) as error:
        start = getattr(error, "start", 0)
        line = data.count(b"\n", 0, start) + 1
        raise SourceError(f"not valid {encoding} text", line) from None
    if "\0" in text:
        raise SourceError("holds a NUL byte", text.count("\n", 0, text.index("\0")) + 1)
    return text, encoding


@dataclass
class Source:
    """Decoded source of one file, with offsets by line and UTF-8 column as `ast` gives them."""

    path: str
    text: str
    encoding: str = "utf-8"
    cells: list[tuple[int, int, int]] = field(default_factory=list)

    @cached_property
    def lines(self) -> list[str]:
        """Lines without line ends; line 1 is item 0."""
        return split_lines(self.text)

    @cached_property
    def starts(self) -> list[int]:
        """Character offset at which each line starts."""
        if "\r" in self.text:
            return [0, *(match.end() for match in _NEWLINE.finditer(self.text))]
        return list(accumulate((len(line) + 1 for line in self.lines[:-1]), initial=0))

    def column(self, line: int, byte_column: int) -> int:
        """Character column (from 0) of a UTF-8 byte column, as `ast` counts them."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        if text.isascii():
            return byte_column
        return len(text.encode("utf-8", "surrogatepass")[:byte_column].decode("utf-8", "ignore"))

    def offset(self, line: int, byte_column: int) -> int:
        """Character offset into :attr:`text` of an `ast` position."""
        return self.starts[line - 1] + self.column(line, byte_column)

    def line_of(self, offset: int) -> int:
        """Line (from 1) that holds a character offset."""
        return bisect.bisect_right(self.starts, offset)
