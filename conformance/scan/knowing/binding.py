"""How much of a file is parsed and which of its names are bound: both grow until they suffice."""

from __future__ import annotations

from conformance.scan.knowing.foreign import ALONE, Foreign
from conformance.scan.knowing.scopes import Scopes
from conformance.scan.reading.lines import HotLines, line_numbers
from conformance.scan.reading.parser import Parser
from conformance.scan.reading.prefilter import binding_offsets, occurrences

_ROUNDS = 3


class Binding:
    """The tree of a file, its scopes and its lines of interest."""

    def __init__(
        self, data: bytes, offsets: list[int], *, plain: bool, foreign: Foreign = ALONE
    ) -> None:
        """Parse what holds the words of interest; raises SourceError.

        ``data`` is the text in UTF-8 and ``offsets`` where the words are in it; ``plain`` is for
        :class:`Parser`.
        """
        self.foreign = foreign
        self._data = data
        self._offsets = offsets
        self._parser = Parser(data, plain)
        self.tree = self._parser.parse(offsets)
        self._marks = sorted({*offsets, *binding_offsets(data)})
        self._names: set[str] = foreign.names
        if self._names:
            self._marks = sorted({*self._marks, *occurrences(data, self._names)})

    def complete(self) -> None:
        """Bind names, again with what stands for a device, until nothing more does."""
        for _ in range(_ROUNDS):
            self._bind(self._marks)
            new = (self.scopes.spread | self.scopes.local) - self._names
            if not new:
                return
            self._names |= new
            self._marks = sorted({*self._marks, *occurrences(self._data, new)})
            spread = self.scopes.spread
            if spread:
                # A name of the module or of self may be read in functions that were thinned out.
                self._offsets = sorted({*self._offsets, *occurrences(self._data, spread)})
                self.tree = self._parser.parse(self._offsets)
        self._bind(self._marks)

    def take_in(self, names: set[str], lines: list[tuple[int, int]] | None = None) -> None:
        """Parse and bind what speaks of these names as well, on all lines or on some."""
        called = occurrences(self._data, names)
        if lines is not None:
            called.sort()
            numbers = line_numbers(self._data, called)
            called = [
                at
                for at, number in zip(called, numbers, strict=True)
                if any(first <= number <= last for first, last in lines)
            ]
        self.tree = self._parser.parse(sorted({*self._offsets, *called}))
        self._bind(sorted({*self._marks, *called}))

    def _bind(self, marks: list[int]) -> None:
        self.hot = HotLines(line_numbers(self._data, marks))
        self.scopes = Scopes(self.tree)
        self.scopes.collect(self.tree, self.hot, self._names)
        self.foreign.bind(self.scopes)
