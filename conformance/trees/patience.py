"""Ends what a tree does when it has taken too long, so that no run hangs."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TookTooLong(BaseException):
    """The time for a call was up.

    Attributes:
        frame: what was running.
    """

    def __init__(self, seconds: float, frame: FrameType | None) -> None:
        super().__init__(f"it was still running after {seconds:g} s")
        self.frame = frame


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """A block that may not take longer, on the main thread of a system that has the signal.

    Raises:
        TookTooLong: within the block, wherever it is.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(seconds, frame)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or not hasattr(signal, "setitimer"):
        yield
        return
    watching = sys.getprofile()
    rung = signal.signal(signal.SIGALRM, ring)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)[0]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, before)
        signal.signal(signal.SIGALRM, rung)
        # Python takes a watch away in which the clock has rung.
        sys.setprofile(watching)
