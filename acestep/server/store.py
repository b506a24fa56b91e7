"""Tasks and their results on disk: what was accepted ends in one final state, whatever happens.

One SQLite database in WAL mode and two folders. A result is written in full, renamed to a name
that nobody can guess, and only then noted together with the task's final state; what a process
that died left between is removed at the next start, and its task is taken up once more.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from acestep.errors import AceStepError, RequestError
from acestep.server.options import Limits
from acestep.song.formats import FORMATS

QUEUED, RUNNING, SUCCEEDED = "queued", "running", "succeeded"
FAILED, CANCELLED = "failed", "cancelled"
STATES = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
  place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, client TEXT NOT NULL,
  kind TEXT NOT NULL, attended INTEGER NOT NULL, state TEXT NOT NULL, asked TEXT NOT NULL,
  created REAL NOT NULL, started REAL, ended REAL, attempts INTEGER NOT NULL DEFAULT 0,
  stopping INTEGER NOT NULL DEFAULT 0, removed REAL, error TEXT, result TEXT);
CREATE INDEX IF NOT EXISTS tasks_by_state ON tasks (state, place);
CREATE INDEX IF NOT EXISTS tasks_by_client ON tasks (client, started);
CREATE TABLE IF NOT EXISTS files (
  name TEXT PRIMARY KEY, task TEXT NOT NULL, bytes INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS uploads (name TEXT PRIMARY KEY, task TEXT NOT NULL);
"""
_COLUMNS = (
    "id, client, kind, attended, state, asked, created, started, ended, attempts, removed, error, "
    "result, place"
)
# Whose last task began longest ago comes next; of one client the oldest.
_NEXT = f"""
SELECT {_COLUMNS} FROM tasks AS one WHERE state = 'queued' ORDER BY
  (SELECT COALESCE(MAX(started), 0) FROM tasks WHERE client = one.client), place LIMIT 1
"""


class FullError(AceStepError):
    """The queue has no room."""


@dataclass(frozen=True)
class Task:
    """One piece of work, as the database has it.

    Attributes:
        id: what its client knows it by; nobody can guess it.
        client: who asked; the order is fair between clients.
        kind: `song`, `format` or `sample`.
        attended: whether a client waits at the other end of a connection for it.
        state: one of `STATES`.
        asked: what for, as `Asked.plain` gives it.
        created, started, ended, removed: seconds since 1970, or None; `removed` is when its
            files went.
        attempts: how often it was begun.
        error: what was wrong, one line.
        result: what came of it.
    """

    id: str
    client: str
    kind: str
    attended: bool
    state: str
    asked: dict[str, Any] = field(repr=False)
    created: float
    started: float | None = None
    ended: float | None = None
    attempts: int = 0
    removed: float | None = None
    error: str | None = None
    result: dict[str, Any] | None = field(default=None, repr=False)
    place: int = 0


class Store:
    """A folder of tasks and results; one process uses it at a time.

    Args:
        folder: made when needed; only its owner can read it.
        limits: how many may wait, how much is kept.

    Raises:
        RequestError: another process uses the folder.
    """

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.folder, self.limits = folder, limits or Limits()
        self.results, self.uploads = folder / "results", folder / "uploads"
        for one in (folder, self.results, self.uploads):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._claim = sqlite3.connect(folder / "in-use.db", check_same_thread=False, timeout=0)
        try:
            self._claim.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            self._claim.close()
            raise RequestError(
                f"another server uses {folder}; stop it, or give this one --data-dir"
            ) from None
        self._base = sqlite3.connect(
            folder / "tasks.db", check_same_thread=False, isolation_level=None
        )
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.executescript(_SCHEMA)
        self._recover()

    def close(self) -> None:
        """Let the folder go."""
        with self._lock:
            self._base.close()
            self._claim.close()

    def add(
        self,
        client: str,
        kind: str,
        asked: dict[str, Any],
        *,
        attended: bool = False,
        uploads: Sequence[str] = (),
    ) -> tuple[Task, int]:
        """Accept a task; returns it and how many are before it, itself counted.

        Args:
            uploads: names in the folder of uploads that it reads and that go with it.

        Raises:
            FullError: the queue has no room.
        """
        task = Task(secrets.token_hex(16), client, kind, attended, QUEUED, asked, time.time())
        with self._changing() as base:
            (waiting,) = base.execute(
                "SELECT COUNT(*) FROM tasks WHERE state = ?", (QUEUED,)
            ).fetchone()
            if waiting >= self.limits.waiting:
                raise FullError(f"the queue is full ({waiting} tasks); try again later")
            row = base.execute(
                "INSERT INTO tasks (id, client, kind, attended, state, asked, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (task.id, client, kind, attended, QUEUED, json.dumps(asked), task.created),
            )
            base.executemany("INSERT INTO uploads VALUES (?, ?)", [(u, task.id) for u in uploads])
        return replace(task, place=row.lastrowid or 0), waiting + 1

    def take(self) -> Task | None:
        """The next task, now running; None while nothing waits."""
        with self._changing() as base:
            row = base.execute(_NEXT).fetchone()
            if row is None:
                return None
            task = _task(row)
            base.execute(
                "UPDATE tasks SET state = ?, started = ?, attempts = attempts + 1 WHERE id = ?",
                (RUNNING, time.time(), task.id),
            )
        return self.get(task.id)

    def put_back(self, task_id: str) -> None:
        """Have a running task wait again, as if it had not been begun."""
        with self._changing() as base:
            base.execute(
                "UPDATE tasks SET state = ?, started = NULL, attempts = attempts - 1 "
                "WHERE id = ? AND state = ?",
                (QUEUED, task_id, RUNNING),
            )

    def succeed(self, task_id: str, result: dict[str, Any], files: Iterable[str] = ()) -> None:
        """Note what came of a running task, and which files it has, all at once."""
        now = time.time()
        sizes = [(name, (self.results / name).stat().st_size) for name in files]
        with self._changing() as base:
            self._end(base, task_id, SUCCEEDED, result=result)
            rows = [(name, task_id, size, now) for name, size in sizes]
            base.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", rows)
        self._drop_uploads(task_id)

    def fail(self, task_id: str, error: str) -> None:
        """Note that a task failed, and why."""
        with self._changing() as base:
            self._end(base, task_id, FAILED, error)
        self._drop_uploads(task_id)

    def stop(self, task_id: str) -> str | None:
        """Cancel a task: at once while it waits, soon while it runs.

        Returns:
            Its state now, or None where there is no such task.
        """
        with self._changing() as base:
            task = self.get(task_id)
            if task is None:
                return None
            if task.state == RUNNING:
                base.execute("UPDATE tasks SET stopping = 1 WHERE id = ?", (task_id,))
            elif task.state == QUEUED:
                self._end(base, task_id, CANCELLED, "cancelled")
        if task.state == QUEUED:
            self._drop_uploads(task_id)
            return CANCELLED
        return task.state

    def cancelled(self, task_id: str) -> None:
        """Note that a running task was stopped on demand."""
        with self._changing() as base:
            self._end(base, task_id, CANCELLED, "cancelled")
        self._drop_uploads(task_id)

    def get(self, task_id: str) -> Task | None:
        """A task, or None."""
        with self._lock:
            row = self._base.execute(
                f"SELECT {_COLUMNS} FROM tasks WHERE id = ?", (task_id,)
            ).fetchone()
        return None if row is None else _task(row)

    def place(self, task: Task) -> int:
        """How many waiting tasks came before this one, itself counted; 0 once it is begun."""
        with self._lock:
            (before,) = self._base.execute(
                "SELECT COUNT(*) FROM tasks WHERE state = ? AND place <= ?", (QUEUED, task.place)
            ).fetchone()
        return int(before) if task.state == QUEUED else 0

    def counts(self) -> dict[str, int]:
        """How many tasks are in each state."""
        with self._lock:
            rows = self._base.execute("SELECT state, COUNT(*) FROM tasks GROUP BY state").fetchall()
        return {**dict.fromkeys(STATES, 0), **dict(rows)}

    def mean_seconds(self) -> float:
        """How long the latest 100 songs took, each; 0 before the first."""
        with self._lock:
            (mean,) = self._base.execute(
                "SELECT AVG(seconds) FROM (SELECT ended - started AS seconds FROM tasks "
                "WHERE state = ? AND kind = 'song' ORDER BY ended DESC LIMIT 100)",
                (SUCCEEDED,),
            ).fetchone()
        return float(mean or 0.0)

    def new_result(self, kind: str) -> tuple[Path, str]:
        """Where to write a result of a kind of file, and what it is to be called then."""
        return self.results / f".part-{secrets.token_hex(8)}", f"{secrets.token_hex(24)}.{kind}"

    def keep(self, part: Path, name: str) -> None:
        """Give a result that is written in full its name."""
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(part, self.results / name)

    def result(self, name: str) -> Path | None:
        """The file of a result, or None; no other file can be named."""
        stem, _, kind = name.partition(".")
        if len(stem) != 48 or not stem.isalnum() or not stem.isascii() or kind not in FORMATS:
            return None
        with self._lock:
            known = self._base.execute("SELECT 1 FROM files WHERE name = ?", (name,)).fetchone()
        path = self.results / name
        return path if known and path.is_file() else None

    def new_upload(self) -> Path:
        """Where to write an upload."""
        return self.uploads / secrets.token_hex(16)

    def uploaded(self) -> int:
        """Bytes of the uploads that are there."""
        total = 0
        for path in self.uploads.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def prune(self, now: float | None = None) -> None:
        """Remove results that are too old or too much, and records that are older still."""
        now, limits = time.time() if now is None else now, self.limits
        with self._changing() as base:
            gone, total = set(), 0
            rows = base.execute(
                "SELECT name, task, bytes, created FROM files ORDER BY created DESC"
            )
            for _, task, size, created in rows.fetchall():
                total += size
                if now - created > limits.keep_seconds or total > limits.keep_bytes:
                    gone.add(task)
            names = []
            for task in gone:
                found = base.execute("SELECT name FROM files WHERE task = ?", (task,)).fetchall()
                names += [name for (name,) in found]
                base.execute("DELETE FROM files WHERE task = ?", (task,))
                base.execute("UPDATE tasks SET removed = ? WHERE id = ?", (now, task))
            base.execute(
                "DELETE FROM tasks WHERE ended < ? AND id NOT IN (SELECT task FROM files)",
                (now - limits.keep_records,),
            )
        for name in names:
            (self.results / name).unlink(missing_ok=True)

    def usage(self) -> tuple[int, int]:
        """How many files are kept, and their bytes."""
        with self._lock:
            count, size = self._base.execute("SELECT COUNT(*), SUM(bytes) FROM files").fetchone()
        return int(count), int(size or 0)

    def _recover(self) -> None:
        """Settle what a process that died left: tasks half done, files that nobody noted."""
        with self._changing() as base:
            rows = base.execute(
                f"SELECT {_COLUMNS}, stopping FROM tasks WHERE state IN (?, ?)", (QUEUED, RUNNING)
            ).fetchall()
            for *columns, stopping in rows:
                task = _task(columns)
                if stopping:
                    self._end(base, task.id, CANCELLED, "cancelled")
                elif task.attended:
                    # Its client hung up with the process that died.
                    self._end(base, task.id, FAILED, "the server was restarted; ask again")
                elif task.state == RUNNING and task.attempts >= self.limits.attempts:
                    times = "twice" if task.attempts == 2 else f"{task.attempts} times"
                    self._end(base, task.id, FAILED, f"the server died {times} while making it")
                elif task.state == RUNNING:
                    base.execute("UPDATE tasks SET state = ? WHERE id = ?", (QUEUED, task.id))
            base.execute(
                "DELETE FROM uploads WHERE task NOT IN (SELECT id FROM tasks WHERE state = ?)",
                (QUEUED,),
            )
            kept = {name for (name,) in base.execute("SELECT name FROM files")}
            sent = {name for (name,) in base.execute("SELECT name FROM uploads")}
        for folder, known in ((self.results, kept), (self.uploads, sent)):
            for path in folder.iterdir():
                if path.name not in known:
                    path.unlink(missing_ok=True)
        self.prune()

    def _end(
        self,
        base: sqlite3.Connection,
        task_id: str,
        state: str,
        error: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        """Once a task has ended, it stays as it ended."""
        base.execute(
            "UPDATE tasks SET state = ?, ended = ?, error = ?, result = ? "
            "WHERE id = ? AND state IN ('queued', 'running')",
            (state, time.time(), error, result and json.dumps(result), task_id),
        )

    def _drop_uploads(self, task_id: str) -> None:
        with self._changing() as base:
            rows = base.execute("SELECT name FROM uploads WHERE task = ?", (task_id,)).fetchall()
            base.execute("DELETE FROM uploads WHERE task = ?", (task_id,))
        for (name,) in rows:
            with contextlib.suppress(FileNotFoundError):
                (self.uploads / name).unlink()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing, and nobody's else meanwhile."""
        with self._lock:
            if self._base.in_transaction:
                yield self._base
                return
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")


def _task(row: Sequence[Any]) -> Task:
    (
        task_id, client, kind, attended, state, asked, created, started, ended, attempts, removed,
        error, result, place,
    ) = row  # fmt: skip
    return Task(
        task_id, client, kind, bool(attended), state, json.loads(asked), created, started, ended,
        attempts, removed, error, None if result is None else json.loads(result), place,
    )  # fmt: skip
