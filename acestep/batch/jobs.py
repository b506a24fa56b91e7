"""Jobs of a batch, and the journal that says which of them are done."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acestep.errors import RequestError, first_line
from acestep.song import audio_files, normalise, saving
from acestep.song.params import GenerationParams

JOURNAL = "journal.jsonl"
_UNDER_WAY = f".{JOURNAL}.under-way"
ENDED = "the run ended, killed or crashed, while this song was being made"
_FIELDS = tuple(field.name for field in dataclasses.fields(GenerationParams))
_NUMBERED = re.compile(r"\d{6,}")
# Characters of a prompt in the name of its song.
_WORDS = 40
_NAME = re.compile(r"[\w][\w.-]{0,99}")


@dataclass(frozen=True)
class Job:
    """One song to make.

    Attributes:
        name: of its files, without extension.
        params: fields of `GenerationParams`, the seed among them.
        named: whether the line says its name itself.
        seeded: whether it says its seed itself.
    """

    name: str
    params: dict[str, Any]
    named: bool = True
    seeded: bool = True

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
    `id` that names its files; without one its content does, wherever it stands, and the second
    of two equal lines is another song. A line without a seed gets one that follows from its name:
    made again, it is the same song.

    Raises:
        RequestError: the file cannot be read, or a line is wrong; the message has its number.
    """
    try:
        # Not `splitlines`: JSON may hold what Unicode calls the end of a line.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RequestError(f"{path}: cannot be read ({reason})") from None
    jobs: dict[str, Job] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        params = _params(where, line)
        given = "id" in params
        name = str(params.pop("id")) if given else _named(params)
        if given and not _NAME.fullmatch(name):
            raise RequestError(
                f"{where}: the id '{normalise.shown(name)}' cannot name a file; use letters, "
                "digits, '.', '_' and '-'"
            )
        if given and name in jobs:
            raise RequestError(f"{where}: the id '{name}' is taken by another line")
        name = next(one for one in _counted(name) if one not in jobs)
        seed = _seed(where, name, params.get("seed"))
        drawn = seed != _given_seed(params.get("seed"))
        jobs[name] = Job(name, {**params, "seed": seed}, named=given, seeded=not drawn)
    if not jobs:
        raise RequestError(f"{path}: holds no prompt; write a JSON object with a caption a line")
    return list(jobs.values())


def _params(where: str, line: str) -> dict[str, Any]:
    try:
        params = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: not JSON ({first_line(error)})") from None
    if not isinstance(params, dict) or not str(params.get("caption", "")).strip():
        raise RequestError(f'{where}: expected an object with a caption, as {{"caption": "…"}}')
    if unknown := sorted(set(params) - {*_FIELDS, "id"}):
        raise RequestError(f"{where}: unknown field '{unknown[0]}'; known: {', '.join(_FIELDS)}")
    return params


def _named(params: Mapping[str, Any]) -> str:
    """A name that follows from what is asked for: its first words, and a digest of all."""
    text = json.dumps(params, sort_keys=True, default=str)
    words = "-".join(re.findall(r"[a-z0-9]+", str(params["caption"]).lower()))
    begin = words[:_WORDS].strip("-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{begin}-{digest}" if begin else digest


def _counted(name: str) -> Iterator[str]:
    return itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))


def _seed(where: str, name: str, given: Any) -> int:
    """The seed of a line, or the one that follows from its name."""
    try:
        seed = _given_seed(given)
    except RequestError:
        raise RequestError(f"{where}: the seed must be a whole number") from None
    return _drawn(name) if seed is None else seed


def _given_seed(given: Any) -> int | None:
    """The seed that a line has, or None.

    Raises:
        RequestError: it is no seed, or there are several.
    """
    seeds = normalise.seeds(given)
    if len(seeds) > 1:
        raise RequestError("there are several seeds")
    return seeds[0] if seeds else None


def _drawn(name: str) -> int:
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
            self.path(job).exists()
            and job.name not in self._own
            and "job" not in self.record_of(job)
        )

    def path(self, job: Job) -> Path:
        """Where a job's song goes."""
        return self.folder / f"{job.name}.{self.audio_format}"

    def is_done(self, job: Job) -> bool:
        """Whether the song is there, made from just this line."""
        return self.path(job).is_file() and self.record_of(job).get("job") == job.fingerprint

    def finish(self, job: Job, made: Made) -> None:
        """Put a song in its place.

        Raises:
            TakenError: a file is there that no run of this folder has made.
            RequestError: the folder cannot be written to.
        """
        path = self.path(job)
        own = job.name in self._own or "job" in self.record_of(job)
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

    def record_of(self, job: Job) -> dict[str, Any]:
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


def adopted(jobs: Sequence[Job], journal: Journal) -> list[Job]:
    """The jobs, those under their old names whose songs lie there under these.

    Lines without an `id` were once named by their numbers; songs of that time are not made again.
    """
    old: dict[str, list[str]] = {}
    for record in journal.folder.glob("*.json") if journal.folder.is_dir() else ():
        name = record.name.split(".")[0]
        if _NUMBERED.fullmatch(name):
            told = journal.record_of(Job(name, {}))
            old.setdefault(str(told.get("caption")), []).append(name)
    return [_adopted(job, old, journal) for job in jobs] if old else list(jobs)


def _adopted(job: Job, old: dict[str, list[str]], journal: Journal) -> Job:
    if job.named or journal.is_done(job):
        return job
    names = old.get(str(job.params["caption"]), [])
    for name in names:
        seed = job.params["seed"] if job.seeded else _drawn(name)
        before = replace(job, name=name, params={**job.params, "seed": seed})
        if journal.is_done(before):
            names.remove(name)
            return before
    return job


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
