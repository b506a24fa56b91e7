"""Lines of interest: byte offsets as line numbers, and whether a range of lines holds one."""

from __future__ import annotations

from collections.abc import Iterable


def line_numbers(data: bytes, offsets: list[int]) -> list[int]:
    """Line numbers of byte offsets; a lone carriage return ends a line as well."""
    lines: list[int] = []
    line, done = 1, 0
    lone = b"\r" in data and data.count(b"\r") != data.count(b"\r\n")
    for offset in offsets:
        if lone:
            stretch = data[done:offset].replace(b"\r\n", b"\n")
            line += stretch.count(b"\n") + stretch.count(b"\r")
        else:
            line += data.count(b"\n", done, offset)
        done = offset
        lines.append(line)
    return lines


class HotLines:
    """Line numbers that hold a word of interest, with a quick "any in this range?"."""

    def __init__(self, lines: Iterable[int]) -> None:
        self.numbers = sorted(set(lines))
        top = (self.numbers[-1] if self.numbers else 0) + 2
        # Prefix counts: a range test is then two look-ups, with no search.
        self._before = [0] * (top + 1)
        previous = 0
        count = 0
        for number in self.numbers:
            self._before[previous + 1 : number + 1] = [count] * (number - previous)
            count += 1
            previous = number
        self._before[previous + 1 :] = [count] * (top - previous)
        self._top = top

    def any(self, first: int, last: int) -> bool:
        """Whether a hot line lies in the range, both ends included."""
        top = self._top
        if first >= top:
            return False
        return self._before[min(last + 1, top)] > self._before[first]
