"""Bytes as syntax: only the parts of a file are parsed that can hold a finding."""

from __future__ import annotations

import ast
import contextlib
import re
import warnings

from conformance.scan.reading import prefilter
from conformance.scan.reading.source import SourceError

#: ``x.cuda(async=True)`` of an older PyTorch: no Python since 3.7, but for this one word.
_ASYNC = re.compile(rb"\basync(?=[ \t]*=[^=])")


def parsed(text: str | bytes) -> ast.Module:
    """A whole text as syntax; empty if it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return ast.Module([], [])


class Parser:
    """Parses the thinned source, or the whole where thinning broke it; again only if it grew."""

    def __init__(self, data: bytes, plain: bool) -> None:
        """``data`` is in UTF-8; unless ``plain``, it declares another encoding, not to be heard."""
        self._data = data
        self._plain = plain
        self._parsed = b""
        self._tree: ast.Module | None = None

    def parse(self, offsets: list[int]) -> ast.Module:
        """Syntax tree that holds at least the given places; raises SourceError."""
        thin = prefilter.thin(self._data, offsets)
        if self._tree is None or (thin != self._parsed and self._parsed is not self._data):
            self._tree = self._parse(thin)
        return self._tree

    def _parse(self, thin: bytes) -> ast.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if thin is not self._data:
                # It fails where a definition stood inside a string or an odd construct.
                with contextlib.suppress(SyntaxError, ValueError):
                    self._parsed = thin
                    return self._syntax(thin)
            self._parsed = self._data
            try:
                return self._syntax(self._data)
            except SyntaxError as error:
                older = _ASYNC.sub(b"_sync", self._data)  # as long, so that places stay
                if older != self._data:
                    with contextlib.suppress(SyntaxError, ValueError):
                        return self._syntax(older)
                raise SourceError(error.msg or "invalid syntax", error.lineno or 1) from None
            except ValueError as error:
                raise SourceError(str(error)) from None

    def _syntax(self, data: bytes) -> ast.Module:
        return ast.parse(data if self._plain else data.decode("utf-8", "surrogatepass"))
