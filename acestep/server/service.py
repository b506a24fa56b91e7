"""Everything behind the API: the line, the workers, the folders; without HTTP."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence

from acestep.server.catalogue import Catalogue
from acestep.server.engines import Engines
from acestep.server.keys import Keys
from acestep.server.line import Line
from acestep.server.metrics import Metrics
from acestep.server.options import ServerOptions
from acestep.server.sounds import Sounds
from acestep.server.store import QUEUED, Store
from acestep.server.work import Work
from acestep.server.workers import Doing, Worker

log = logging.getLogger("acestep.server")

# Tasks of a device at a time: one is planned while the other is made and written.
_AHEAD = 2


class Service:
    """What the API asks.

    Args:
        options: see `ServerOptions`.
        engines: makes the models of a device; by default they are the service's own.

    Raises:
        RequestError: the folder is in use.
    """

    def __init__(
        self, options: ServerOptions, engines: Callable[[str], Engines] | None = None
    ) -> None:
        self.options, self.limits = options, options.limits
        self.catalogue = Catalogue(options)
        self.store = Store(options.folder, self.limits)
        self.sounds = Sounds(self.store, options.allowed, self.limits)
        self.keys = Keys(options.api_key, self.limits)
        self.line = Line(self.store)
        self.metrics = Metrics(self.store)
        self.line.observers.append(self.metrics.task)
        self._engines = engines or (lambda device: Engines(device, options))
        self.workers = [
            Worker(f"acestep-{number}-{device}", self.line, work, self.store)
            for number, (device, work) in enumerate(self._works(options.devices))
        ]

    def start(self) -> None:
        """Begin to work."""
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """Let what runs end, for a while; what does not, and what waits, is kept for later."""
        self.line.close()
        grace = threading.Timer(self.limits.grace, self.line.close, (True,))
        grace.start()
        try:
            for worker in self.workers:
                # Work looks up between its steps; one of the largest model's may take a while.
                if not worker.join(self.limits.grace + 60.0):
                    log.warning("a worker does not end; its task is taken up at the next start")
        finally:
            grace.cancel()
        self.store.close()

    @property
    def seconds_to_wait(self) -> int:
        """After how long there may be room in the queue."""
        waiting = self.store.counts()[QUEUED]
        each = (self.store.mean_seconds() or 5.0) / max(len(self.workers), 1)
        return min(max(math.ceil(each * waiting / 10), 1), 120)

    def _works(self, devices: Sequence[str]) -> Iterator[tuple[str, Doing]]:
        """How tasks are done on each device, here or in workers of Ray."""
        source = self.catalogue.source
        if not self.options.ray:
            for device in devices:
                workers = _AHEAD if self.options.ahead else 1
                work = Work(self._engines(device), self.store, self.sounds, source, workers)
                for _ in range(workers):
                    yield device, work
            return
        from acestep.server.distant import distant

        yield from distant(self.options, self.store, self.sounds, self.catalogue)
