"""The last few of what is dear to make, and sizes rounded up so that it fits more often."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Recent(OrderedDict[_Key, _Value]):
    """Values by key, of which the one unused longest makes way for a new one.

    Args:
        most: how many are kept at a time.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def find(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """The value of a key; made now, and room for it before, if there is none yet."""
        if key not in self:
            while len(self) >= self._most:
                self.popitem(last=False)
            self[key] = make()
        self.move_to_end(key)
        return self[key]


def rounded_up(count: int, step: int) -> int:
    """The next multiple of `step`, or `count` if it is one."""
    return -(-count // step) * step
