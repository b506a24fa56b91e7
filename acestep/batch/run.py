"""Drives a batch to its end: every job done once, failures tried once more and listed."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from acestep.batch.jobs import Job, Journal, Made, adopted, remaining
from acestep.batch.pools import Pool
from acestep.song.audio_files import TakenError

TRIES = 2
"""A job that fails is tried once more, after all others."""

DEATHS = 2
"""A job that comes back this often because its workers died is taken to be what kills them."""

FOREIGN = "{} exists, and is not of this batch; move it, or give the line another id"


@dataclass
class Progress:
    """How far a batch is.

    Attributes:
        total: jobs in the file.
        before: of these, done in an earlier run.
        done: done in this run.
        music: seconds of music made in this run.
        failed: job names and why, of those given up.
        warnings: what is to be said of songs, and of which first; each is there once.
        started: monotonic time of the first job.
    """

    total: int
    before: int
    done: int = 0
    music: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """One line for a person: counts, rate and the time left."""
        spent = max(time.monotonic() - self.started, 1e-9)
        rate = self.done / spent
        left = self.total - self.before - self.done - len(self.failed)
        text = f"{self.before + self.done} of {self.total} done"
        if self.failed:
            text += f", {len(self.failed)} failed"
        if self.done:
            minutes, seconds = divmod(round(left / rate), 60)
            text += f", {3600 * rate:.0f} songs an hour, {minutes}:{seconds:02d} left"
        return text


def run(
    jobs: Sequence[Job],
    journal: Journal,
    make_pool: Callable[[], Pool],
    tell: Callable[[Progress], None],
) -> Progress:
    """Make every song that is not there yet.

    Args:
        jobs: all of the file, done or not.
        journal: of the folder, locked by the caller.
        make_pool: called only if there is something to do.
        tell: told the progress after every job.
    """
    jobs = adopted(jobs, journal)
    left = remaining(jobs, journal)
    progress = Progress(len(jobs), len(jobs) - len(left))
    waiting: deque[Job] = deque()
    for job in left:
        if journal.is_foreign(job):
            _give_up(job, FOREIGN.format(journal.path(job).name), journal, progress)
        else:
            waiting.append(job)
    if not waiting:
        return progress
    pool = make_pool()
    progress.started = time.monotonic()
    tries: Counter[str] = Counter()
    deaths: Counter[str] = Counter()
    under_way: dict[str, Job] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < pool.room:
                job = waiting.popleft()
                under_way[job.name] = job
                journal.under_way(under_way.values())
                pool.submit(job)
            job, outcome = pool.wait()
            if isinstance(outcome, Made):
                try:
                    journal.finish(job, outcome)
                except TakenError:
                    _give_up(job, FOREIGN.format(journal.path(job).name), journal, progress)
                else:
                    progress.done += 1
                    progress.music += float(outcome.record.get("seconds", 0.0))
                    for line in outcome.record.get("warnings", ()):
                        progress.warnings.setdefault(line, job.name)
            elif outcome is None and deaths[job.name] + 1 < DEATHS:
                deaths[job.name] += 1
                waiting.appendleft(job)
            else:
                reason = outcome or "its workers died, again and again"
                journal.fail(job, reason)
                tries[job.name] += 1
                if tries[job.name] < TRIES and outcome is not None:
                    waiting.append(job)
                else:
                    progress.failed[job.name] = reason
            del under_way[job.name]
            journal.under_way(under_way.values())
            tell(progress)
    finally:
        pool.close()
    return progress


def _give_up(job: Job, reason: str, journal: Journal, progress: Progress) -> None:
    progress.failed[job.name] = reason
    journal.fail(job, reason)
