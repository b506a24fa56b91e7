"""The line between those who ask and those who work: who waits, how far it is, who stops it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from acestep.errors import CancelledError, GenerationError
from acestep.server.store import QUEUED, RUNNING, Store, Task

Observer = Callable[[Task], None]


@dataclass
class Live:
    """A task of this process, as far as it is not yet in the database.

    Attributes:
        fraction, stage: how far it is, 0 to 1, and what it is doing.
        stopped: set when somebody wants it to end.
        put_back: whether it is to wait again then, because the service stops.
        deadline: when it has taken too long, on the monotonic clock.
    """

    fraction: float = 0.0
    stage: str = "queued"
    stopped: threading.Event = field(default_factory=threading.Event)
    put_back: bool = False
    deadline: float = float("inf")
    waiters: list[Callable[[], None]] = field(default_factory=list)

    def report(self, fraction: float, desc: str = "") -> None:
        """Note progress; the work calls it often.

        Raises:
            CancelledError: somebody wants it to end.
            GenerationError: it takes too long.
        """
        if self.stopped.is_set():
            raise CancelledError("cancelled")
        if time.monotonic() > self.deadline:
            raise GenerationError("it took longer than a task may take here")
        self.fraction, self.stage = min(max(fraction, self.fraction), 1.0), desc


class Line:
    """Hands tasks from the store to workers, one after another.

    Args:
        store: of tasks.

    Attributes:
        ended: how many tasks ended in each state.
        observers: told of each task that ended.
        arrived: told that a task waits.
        others: how many of those who share the device come before a new task.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ended: Counter[str] = Counter()
        self.observers: list[Observer] = []
        self.arrived: Callable[[], None] = _nothing
        self.others: Callable[[], int] = _none
        self._live: dict[str, Live] = {}
        self._changed = threading.Condition()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it hands out no more."""
        return self._closed

    def submit(
        self, client: str, kind: str, asked: dict[str, Any], *,
        attended: bool = False, uploads: Sequence[str] = (),
    ) -> tuple[Task, int]:  # fmt: skip
        """Put a task into the line, see `Store.add`.

        Raises:
            FullError: there is no room.
        """
        with self._changed:
            task, place = self.store.add(client, kind, asked, attended=attended, uploads=uploads)
            self._live[task.id] = Live()
            self._changed.notify()
        before = self.others()
        self.arrived()
        return task, place + before

    def take(self, timeout: float) -> tuple[Task, Live] | None:
        """The next task for a worker; None where none came in so many seconds, or it is over."""
        with self._changed:
            if self._closed:
                return None
            task = self.store.take()
            if task is None and self._changed.wait(timeout) and not self._closed:
                task = self.store.take()
            if task is None:
                return None
            return task, self._live.setdefault(task.id, Live())

    def end(self, task: Task) -> None:
        """Tell those who wait that a task has ended."""
        with self._changed:
            live = self._live.pop(task.id, None)
        ended = self.store.get(task.id)
        if ended is not None:
            self.ended[ended.state] += 1
            for observer in self.observers:
                observer(ended)
        for wake in live.waiters if live else ():
            wake()

    def place(self, task: Task) -> int:
        """How many come before a task, itself counted; 0 once it is begun."""
        place = self.store.place(task)
        return place + self.others() if place else 0

    def progress(self, task: Task) -> tuple[float, str]:
        """How far a task is, and what it is doing."""
        live = self._live.get(task.id)
        if task.state != RUNNING or live is None:
            return (0.0, "queued") if task.ended is None else (1.0, task.state)
        return live.fraction, live.stage

    def stop(self, task_id: str) -> str | None:
        """Cancel a task, see `Store.stop`."""
        live = self._live.get(task_id)
        state = self.store.stop(task_id)
        if live is not None:
            live.stopped.set()
            if state != RUNNING and (task := self.store.get(task_id)) is not None:
                self.end(task)
        return state

    async def ended_within(self, task_id: str, seconds: float) -> bool:
        """Wait for the end of a task; False where it goes on."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            # A loop that is gone waits for nobody.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        with self._changed:
            live = self._live.get(task_id)
            if live is None:
                return True
            live.waiters.append(wake)
        try:
            await asyncio.wait_for(done.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(ValueError):
                live.waiters.remove(wake)
        return True

    def lost(self, task_id: str) -> bool:
        """Whether a task will not be done any more by this process."""
        if not self._closed:
            return False
        task = self.store.get(task_id)
        return task is None or task.state == QUEUED

    def close(self, running: bool = False) -> None:
        """Hand out no more; with `running`, have what runs wait for the next start."""
        with self._changed:
            self._closed = True
            if running:
                for live in self._live.values():
                    live.put_back = True
                    live.stopped.set()
            self._changed.notify_all()


def _nothing() -> None:
    """Nobody else is to be told."""


def _none() -> int:
    """Nobody else uses the device."""
    return 0
