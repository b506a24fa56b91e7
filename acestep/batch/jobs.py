"""Jobs of a batch, and the journal that says which of them are done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.errors import RequestError
from acestep.song import audio_files, normalise, saving
from acestep.song.params import GenerationParams

JOURNAL = "journal.jsonl"
_UNDER_WAY = f".{JOURNAL}.under-way"
ENDED = "the run ended, killed or crashed, while this song was being made"
_FIELDS = tuple(field.name for field in dataclasses.fields(GenerationParams))
_NAME = re.compile(r"[\w][\w.-]{0,99}")


@dataclass(frozen=True)
class Job:
    """One song to make.

    Attributes:
        name: of its files, without extension.
        params: fields of `GenerationParams`, the seed among them.
    """

    name: str
    params: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Changes with what is asked for, so that an edited line is made again."""
        text = json.dumps(self.params, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Made:
    """A finished song on its way to the disk: the audio file's bytes, and its description."""

    audio: bytes
    record: dict[str, Any]
    seconds: float


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a file with a JSON object a line.

    A line has the fields of `GenerationParams`, of which `caption` is needed, and may have an
    `id` that names its files; without one the line's number does. A line without a seed gets
    one that follows from its name: made again, it is the same song.

    Raises:
        RequestError: the file cannot be read, or a line is wrong; the message has its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from None
    jobs: dict[str, Job] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        job = _job(f"{path}:{number}", line, number)
        if job.name in jobs:
            raise RequestError(f"{path}:{number}: the id '{job.name}' is taken by another line")
        jobs[job.name] = job
    if not jobs:
        raise RequestError(f"{path}: holds no prompt; write a JSON object with a caption a line")
    return list(jobs.values())


def _job(where: str, line: str, number: int) -> Job:
    try:
        params = json.loads(line)
    except ValueError as error:
        raise RequestError(f"{where}: not JSON ({error})") from None
    if not isinstance(params, dict) or not str(params.get("caption", "")).strip():
        raise RequestError(f'{where}: expected an object with a caption, as {{"caption": "…"}}')
    name = str(params.pop("id", f"{number:06d}"))
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}: the id '{name}' cannot name a file; use letters, digits, '.', '_' and '-'"
        )
    if unknown := sorted(set(params) - set(_FIELDS)):
        raise RequestError(f"{where}: unknown field '{unknown[0]}'; known: {', '.join(_FIELDS)}")
    return Job(name, {**params, "seed": _seed(where, name, params.get("seed"))})


def _seed(where: str, name: str, given: Any) -> int:
    """The seed of a line, or the one that follows from its name."""
    try:
        seeds = normalise.seeds(given)
    except RequestError:
        seeds = (None, None)
    if len(seeds) > 1:
        raise RequestError(f"{where}: the seed must be a whole number")
    if seeds and seeds[0] is not None:
        return seeds[0]
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


class Journal:
    """What happened to each job, a line an event, in the folder of the songs.

    A song is done when its description lies beside it: that file is written last, each file
    appears whole, and both keep their names when a job is made again. The journal adds what
    files cannot say: failures, and which job they were for. A torn last line is passed over.
    Names of jobs under way stand in a file of their own: what is in there when a run begins was
    cut off by the end of another. Files that no run of this folder made are never replaced.
    """

    def __init__(self, folder: Path, audio_format: str) -> None:
        self.folder, self.audio_format = folder, audio_format
        self._path = folder / JOURNAL
        self._own: set[str] = set()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, created where it is missing, for this run alone.

        Raises:
            RequestError: another run is at work there, or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / f".{JOURNAL}.lock").open("w")
        except OSError as error:
            raise RequestError(f"{self.folder}: cannot be written ({error})") from None
        with lock:
            try:
                _take(lock)
            except OSError:
                raise RequestError(
                    f"{self.folder}: another run is at work there; wait for it, or choose another "
                    "folder"
                ) from None
            self._own = {
                str(event.get("id"))
                for event in self.events()
                if event.get("state") == "done" or event.get("reason") == ENDED
            }
            self._note_cut_off()
            try:
                yield
            finally:
                self.under_way(())

    def under_way(self, jobs: Iterable[Job]) -> None:
        """Write down which jobs are being made, in place of those before."""
        names = [job.name for job in jobs]
        path = self.folder / _UNDER_WAY
        if names:
            path.write_text("\n".join(names), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)

    def is_foreign(self, job: Job) -> bool:
        """Whether there is a file under the job's name that no run of this folder has made."""
        return (
            self.path(job).exists() and job.name not in self._own and "job" not in self._record(job)
        )

    def path(self, job: Job) -> Path:
        """Where a job's song goes."""
        return self.folder / f"{job.name}.{self.audio_format}"

    def is_done(self, job: Job) -> bool:
        """Whether the song is there, made from just this line."""
        return self.path(job).is_file() and self._record(job).get("job") == job.fingerprint

    def finish(self, job: Job, made: Made) -> None:
        """Put a song in its place.

        Raises:
            TakenError: a file is there that no run of this folder has made.
            RequestError: the folder cannot be written to.
        """
        path = self.path(job)
        own = job.name in self._own or "job" in self._record(job)
        record = {"file": path.name, "job": job.fingerprint, **made.record}
        text = json.dumps(record, ensure_ascii=False, indent=2, default=str) + "\n"
        with audio_files.replacing(path, overwrite=own) as part:
            part.write_bytes(made.audio)
        self._own.add(job.name)
        with audio_files.replacing(saving.record_path(path)) as part:
            part.write_text(text, encoding="utf-8")
        self._note({"id": job.name, "state": "done", "seconds": round(made.seconds, 3)})

    def fail(self, job: Job, reason: str) -> None:
        """Write down why a job was not done."""
        self._note({"id": job.name, "state": "failed", "reason": reason})

    def _record(self, job: Job) -> dict[str, Any]:
        """The description beside a job's song; empty where there is none to be read."""
        try:
            told = json.loads(saving.record_path(self.path(job)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def _note_cut_off(self) -> None:
        path = self.folder / _UNDER_WAY
        if path.is_file():
            for name in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._own.add(name)
                self._note({"id": name, "state": "failed", "reason": ENDED})

    def events(self) -> list[dict[str, Any]]:
        """Everything written down so far, oldest first."""
        events = []
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    events.append(json.loads(line))
                except ValueError:
                    continue
        return events

    def _note(self, event: dict[str, Any]) -> None:
        # The newline comes first: after a torn line this one still stands alone.
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write("\n" + json.dumps(event, ensure_ascii=False))


def remaining(jobs: Sequence[Job], journal: Journal) -> list[Job]:
    """The jobs whose songs are not there yet; those that failed before come last."""
    failed = {event.get("id") for event in journal.events() if event.get("state") == "failed"}
    missing = [job for job in jobs if not journal.is_done(job)]
    return sorted(missing, key=lambda job: job.name in failed)


def _take(stream: Any) -> None:
    """Lock an open file for this process, or raise OSError; the end of the process frees it."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover (Windows has no fcntl)
        import msvcrt

        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
