"""Who may use a device's models at a time: several whose models are there, or one who loads some."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class Turns:
    """Tasks of one device that share its models.

    A task whose models are all loaded works beside others of that kind; one that has something
    loaded, and so perhaps something let go, waits until nobody works and then works alone. Who comes
    while one waits so begins after it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together, self._alone, self._waiting = 0, False, 0

    def counting(self) -> AbstractContextManager[bool]:
        """A moment in which nobody begins or ends."""
        return self._changed

    @contextmanager
    def working(self, is_loaded: Callable[[], bool]) -> Iterator[None]:
        """The time of a task.

        Args:
            is_loaded: whether all that it needs is there.
        """
        with self._changed:
            # What is there may go while somebody works alone.
            while not self._may_begin(alone := not is_loaded()):
                self._waiting += alone
                self._changed.wait()
                self._waiting -= alone
            self._alone, self._together = alone, self._together + (not alone)
            # Who let this one go first may go too, if it waited for nothing but models.
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone, self._together = False, self._together - (not alone)
                self._changed.notify_all()

    def _may_begin(self, alone: bool) -> bool:
        return not (self._alone or (self._together if alone else self._waiting))
