"""A folder for one run, gone with it: at once when a signal ends it, by the next run after a kill."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

locks: Any = None
with suppress(ImportError):  # Windows, where folders are swept by their age alone
    locks = importlib.import_module("fcntl")

PREFIX = "conformance-run-"
_LOCK, _TEMPORARY = "lock", "TMPDIR"
# A folder is young until its lock has been taken, and old where there are no locks.
_YOUNG, _OLD = 60.0, 86400.0

_held: dict[Path, tuple[IO[str], str | None]] = {}
#: Processes that end with this one.
children: list[subprocess.Popen[Any]] = []


def begin() -> Path:
    """A new folder, which `end` removes; what runs that were killed have left goes first."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = (folder / _LOCK).open("w")
    if locks is not None:
        # The system lets go of it when the process is gone, however it went.
        locks.flock(lock, locks.LOCK_EX | locks.LOCK_NB)
    _held[folder] = (lock, os.environ.get(_TEMPORARY))
    # Processes that are started from here have theirs within it.
    os.environ[_TEMPORARY] = str(folder)
    if _is_free(signal.SIGTERM):
        signal.signal(signal.SIGTERM, _ended)
    return folder


def end(folder: Path) -> None:
    """Remove a folder that `begin` made, and what is in it."""
    lock, before = _held.pop(folder)
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()
    if before is None:
        os.environ.pop(_TEMPORARY, None)
    else:
        os.environ[_TEMPORARY] = before
    if not _held and signal.getsignal(signal.SIGTERM) is _ended:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def lent() -> Iterator[Path]:
    """A folder for a block."""
    folder = begin()
    try:
        yield folder
    finally:
        end(folder)


def sweep() -> None:
    """Remove the folders of runs that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another's, or swept by another meanwhile
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    age = time.time() - folder.stat().st_mtime
    if locks is None:
        return age > _OLD
    file = folder / _LOCK
    if not file.exists():
        return age > _YOUNG
    with file.open("r+") as lock:
        try:
            locks.flock(lock, locks.LOCK_EX | locks.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_free(number: signal.Signals) -> bool:
    """Whether nobody has a use for a signal, and this thread may give it one."""
    ours = threading.current_thread() is threading.main_thread()
    return ours and signal.getsignal(number) is signal.SIG_DFL


def _ended(number: int, frame: Any) -> None:
    """Leave nothing, and end as the signal would have: code that catches all is not asked."""
    for child in children:
        child.terminate()
    for folder in reversed(list(_held)):
        end(folder)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
