"""Settings of the whole process that threads want for a while, on several devices at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Switch:
    """A setting that holds while at least one thread wants it, and then is as it was before.

    Args:
        name: the attribute of its owner.
        value: what is wanted.
    """

    def __init__(self, name: str, value: Any) -> None:
        self._name, self._value = name, value
        self._lock, self._wanted, self._before = threading.Lock(), 0, None

    @contextmanager
    def held(self, owner: Any) -> Iterator[None]:
        """It has the wanted value within a `with` block; the owner is the same at each call."""
        with self._lock:
            if self._wanted == 0:
                self._before = getattr(owner, self._name)
                setattr(owner, self._name, self._value)
            self._wanted += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                if self._wanted == 0:
                    setattr(owner, self._name, self._before)
