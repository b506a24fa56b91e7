"""Who may use a device's models at a time: several whose models are there, or one who loads some."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class Turns:
    """Tasks of one device that share its models.

    A task whose models are all loaded works beside others of that kind; one that has something
    loaded, and so perhaps something let go, waits until nobody works and then works alone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together, self._alone = 0, False

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
            self._changed.wait_for(lambda: not self._alone and (self._together == 0 or is_loaded()))
            alone = not is_loaded()
            self._alone, self._together = alone, self._together + (not alone)
        try:
            yield
        finally:
            with self._changed:
                self._alone, self._together = False, self._together - (not alone)
                self._changed.notify_all()
