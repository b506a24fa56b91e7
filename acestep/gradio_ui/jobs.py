"""The line at the device: one job runs, others wait in order, each can be cancelled."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from acestep.errors import AceStepError, CancelledError, RequestError
from acestep.gradio_ui.limits import Limits
from acestep.gradio_ui.pace import Course

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
_ENDED = (DONE, FAILED, CANCELLED)
# Finished jobs are remembered so that a page that was away can still learn the outcome.
_REMEMBERED = 500

log = logging.getLogger("acestep.page")


@dataclass
class Job:
    """One piece of work for the device.

    Attributes:
        owner: the visitor it belongs to.
        address: where the visitor came from.
        kind: `song`, `align`, `load`, `unload`, `inspire`, `polish` or `api`.
        title: what to call it on the page.
        state: `waiting`, `running`, `done`, `failed` or `cancelled`.
        fraction, stage: how far it is, 0 to 1, and what it is doing.
        course: its way through the stages, where their lengths can be foreseen.
        result: what the work returned.
        error: one sentence for the visitor, or None.
    """

    owner: str
    address: str
    kind: str
    title: str
    work: Callable[[Job], Any] = field(repr=False)
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = WAITING
    fraction: float = 0.0
    stage: str = ""
    started: float | None = None
    ended: float | None = None
    course: Course | None = None
    result: Any = None
    error: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    finished: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in _ENDED

    @property
    def ending(self) -> bool:
        """Whether it was cancelled and still has to notice."""
        return self.state == RUNNING and self.cancelled.is_set()

    @property
    def seconds_left(self) -> float | None:
        """An estimate, or None while there is none."""
        return self.course.seconds_left if self.course is not None else None

    def report(self, fraction: float, desc: str = "") -> None:
        """Note progress; the work calls it often.

        Raises:
            CancelledError: the visitor cancelled the job.
        """
        if self.cancelled.is_set():
            raise CancelledError("cancelled")
        self.fraction, self.stage = min(max(fraction, 0.0), 1.0), desc


class Line:
    """Runs jobs one after another on a thread of its own.

    Args:
        limits: how many may wait.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._waiting: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(
        self, owner: str, address: str, kind: str, title: str, work: Callable[[Job], Any]
    ) -> Job:
        """Put a job at the end of the line.

        Raises:
            RequestError: the line is full, or the visitor has enough in it.
        """
        job = Job(owner, address, kind, title, work)
        with self._changed:
            self._check_room(job)
            self._append(job)
        return job

    def submit_uncounted(self, kind: str, work: Callable[[Job], Any]) -> Job:
        """Put a job of nobody's at the end, which has seen itself that there is room for it."""
        job = Job("", "", kind, "", work)
        with self._changed:
            if self._closed:
                _end(job, CANCELLED)
            else:
                self._append(job)
        return job

    def cancel(self, owner: str, job_id: str | None = None) -> list[Job]:
        """Cancel a visitor's jobs, or one of them; those of others are left alone."""
        with self._changed:
            chosen = [job for job in self.active(owner) if job_id in (None, job.id)]
            for job in chosen:
                job.cancelled.set()
                if job in self._waiting:
                    self._waiting.remove(job)
                    _end(job, CANCELLED)
        return chosen

    def get(self, owner: str, job_id: str) -> Job | None:
        """A visitor's job, or None if there is none of that id."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.owner == owner else None

    def active(self, owner: str | None = None) -> list[Job]:
        """Jobs that wait or run, in order; of one visitor, or of all."""
        with self._changed:
            jobs = [*([self._running] if self._running else []), *self._waiting]
        return [job for job in jobs if owner is None or job.owner == owner]

    def place(self, job: Job) -> int:
        """How many jobs come before this one; 0 once it runs or has ended."""
        jobs = self.active()
        return jobs.index(job) if job in jobs else 0

    def close(self) -> None:
        """Cancel everything and stop the thread."""
        with self._changed:
            self._closed = True
            for job in self.active():
                job.cancelled.set()
            while self._waiting:
                _end(self._waiting.popleft(), CANCELLED)
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _append(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._waiting.append(job)
        self._forget()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="device", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _check_room(self, job: Job) -> None:
        jobs, limits = self.active(), self.limits
        if self._closed:
            raise RequestError("the page is shutting down; try again later")
        if sum(other.owner == job.owner for other in jobs) >= limits.waiting_per_visitor:
            raise RequestError(
                f"you have {limits.waiting_per_visitor} requests in the queue already; wait for "
                "one to finish or cancel it"
            )
        if sum(other.address == job.address for other in jobs) >= limits.waiting_per_address:
            raise RequestError(
                f"{limits.waiting_per_address} requests from your address are in the queue "
                "already; try again when some have finished"
            )
        if len(jobs) >= limits.waiting:
            raise RequestError(f"the queue is full ({limits.waiting} requests); try again later")

    def _forget(self) -> None:
        ended = [key for key, job in self._jobs.items() if not job.active]
        for key in ended[: max(len(self._jobs) - _REMEMBERED, 0)]:
            del self._jobs[key]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                job.state, job.started = RUNNING, time.monotonic()
            try:
                serve(job)
            finally:
                with self._changed:
                    self._running = None


def serve(job: Job) -> None:
    """Run one job; whatever happens, it ends, and the line goes on."""
    try:
        job.report(0.0, "starting")
        job.result = job.work(job)
    except CancelledError:
        _end(job, CANCELLED)
    except AceStepError as error:
        _end(job, FAILED, str(error))
    except Exception as error:
        log.exception("a job of kind %s failed", job.kind)
        _end(job, FAILED, f"something went wrong inside ({type(error).__name__}); see the log")
    else:
        _end(job, DONE)


def _end(job: Job, state: str, error: str | None = None) -> None:
    if state == DONE:
        job.fraction = 1.0
    # Work holds on to uploads and form values; an ended job needs only its outcome.
    job.work = _nothing
    job.error, job.ended, job.state = error, time.monotonic(), state
    job.finished.set()


def _nothing(job: Job) -> None:
    """What is left to do for a job that has ended."""
