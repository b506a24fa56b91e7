"""The workers: one a device, each a thread with models of its own that takes tasks in turn."""

from __future__ import annotations

import gc
import importlib
import logging
import threading
import time
from typing import Any, Protocol

from acestep.errors import AceStepError, CancelledError
from acestep.server.asking import Asked
from acestep.server.line import Line, Live
from acestep.server.store import Store, Task
from acestep.server.work import Report

log = logging.getLogger("acestep.server")

_GLANCE = 1.0
_TIDY = 60.0
# Glances without work after which PyTorch is imported; tasks between two collections.
_WARM, _COLLECT = 3, 50


class Doing(Protocol):
    """How tasks are done; see `Work`."""

    def song(self, asked: Asked, report: Report) -> tuple[dict[str, Any], list[str]]:
        """Make songs: the result as it is kept, and the names of its files."""

    def sample(self, asked: Asked, report: Report) -> dict[str, Any]:
        """Invent or rewrite one."""

    def close(self) -> None:
        """Let the models go."""


class Worker:
    """Does what the line hands out.

    Args:
        name: of its thread.
        line: of tasks.
        work: how they are done, on which device.
        store: of tasks.
    """

    def __init__(self, name: str, line: Line, work: Doing, store: Store) -> None:
        self.line, self.work, self.store = line, work, store
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._tidied = time.monotonic()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait until it has ended; False where it goes on."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def step(self, timeout: float = _GLANCE) -> bool:
        """Do one task, in the thread that calls; False where there was none."""
        taken = self.line.take(timeout)
        if taken is None:
            return False
        task, live = taken
        try:
            self._serve(task, live)
        finally:
            self.line.end(task)
        return True

    def _run(self) -> None:
        idle, made = 0, 0
        while not self.line.closed:
            try:
                worked = self.step()
                idle, made = (0, made + 1) if worked else (idle + 1, made)
                if idle == _WARM and not made:
                    # Answering comes first; then what the first task would wait for.
                    _import()
                # It takes longer than a short song, so nobody is to wait for it.
                if made and (idle == 1 or (worked and made % _COLLECT == 0)):
                    gc.collect()
                if time.monotonic() - self._tidied > _TIDY:
                    self._tidied = time.monotonic()
                    self.store.prune()
            except Exception:
                log.exception("a worker met what it should not have; it goes on")
                time.sleep(_GLANCE)
        self.work.close()

    def _serve(self, task: Task, live: Live) -> None:
        """Whatever happens, the task ends, or waits again for the next start."""
        store = self.store
        live.deadline = time.monotonic() + store.limits.task_seconds
        try:
            live.report(0.0, "starting")
            asked = Asked.of(task.asked)
            if task.kind == "song":
                store.succeed(task.id, *self.work.song(asked, live.report))
            else:
                store.succeed(task.id, self.work.sample(asked, live.report))
        except AceStepError as error:
            # Of a stop in the middle of planning the language model's error tells.
            if isinstance(error, CancelledError) or live.stopped.is_set():
                (store.put_back if live.put_back else store.cancelled)(task.id)
            else:
                store.fail(task.id, str(error))
        except Exception as error:
            log.exception("a task of kind %s failed", task.kind)
            store.fail(
                task.id, f"something went wrong inside ({type(error).__name__}); see the log"
            )


def _import() -> None:
    """Have PyTorch and the rest in memory before the first task needs them."""
    for name in ("acestep.inference", "acestep.handler", "acestep.song.params"):
        importlib.import_module(name)
