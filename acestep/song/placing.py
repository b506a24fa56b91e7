"""Files that appear whole or not at all, and replace others only where that was asked for."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from acestep.errors import RequestError

# The maker's machine and process stand in the name, so that another can tell what a crash left.
_PART = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part")
# With what is added a name stays within the 255 bytes that file systems take.
_LONGEST_STEM = 200
_swept: set[Path] = set()
_lock = threading.Lock()


class TakenError(RequestError):
    """A file of that name exists and was not to be replaced."""


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place on success and goes otherwise.

    Args:
        path: of the file to make; its folder is made where it is missing.
        overwrite: whether a file that is there by then is replaced.

    Raises:
        TakenError: there is a file, and it was not to be replaced.
        RequestError: the system refuses to write there (permissions, full disk, …).
    """
    with part_beside(path) as part:
        yield part
        place(part, [path], overwrite=overwrite)


@contextlib.contextmanager
def part_beside(path: Path) -> Iterator[Path]:
    """An empty temporary file in the folder of `path`, gone at the end unless it was placed.

    What a process that crashed has left in that folder goes as well.

    Raises:
        RequestError: the system refuses to write there.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        part, held = _new_part(path)
        with held:
            yield part
    except OSError as error:
        reason = error.strerror or str(error)
        raise RequestError(
            f"cannot write {path}: {reason}; free some space or choose another place with -o"
        ) from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def place(part: Path, paths: Iterable[Path], *, overwrite: bool = False) -> Path:
    """Give a finished part the first of some names that is free; the file system decides.

    Args:
        part: made by `part_beside`.
        paths: in the part's folder, in order of preference.
        overwrite: take the first name whether it is free or not.

    Returns:
        The name it has.

    Raises:
        TakenError: none of the names is free.
    """
    part.chmod(0o666 & ~_umask())
    path = part
    for path in paths:
        if overwrite:
            os.replace(part, path)
            return path
        with contextlib.suppress(FileExistsError):
            _link(part, path)
            return path
    raise TakenError(f"{path} exists and is kept; overwrite it with --force, or choose another")


def _link(part: Path, path: Path) -> None:
    """Rename, failing with FileExistsError where the new name is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        # A file system without hard links: whoever makes the name owns it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(part, path)
        return
    part.unlink()


def _new_part(path: Path) -> tuple[Path, IO[Any]]:
    """A part, and the open file that holds its lock for as long as this process needs it."""
    stem = path.name.encode()[:_LONGEST_STEM].decode("utf-8", "ignore")
    name = f".{stem}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part"
    part = path.parent / name
    held = part.open("xb")
    _try_lock(held)
    return part, held


def _sweep(folder: Path) -> None:
    """Remove the parts of processes that have ended; once a folder, for it takes a listing."""
    folder = folder.resolve()
    with _lock:
        if folder in _swept:
            return
        _swept.add(folder)
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            made = _PART.fullmatch(entry.name)
            if made and made[1] == _machine() and not psutil.pid_exists(int(made[2])):
                _remove_unlocked(Path(entry.path))


def _remove_unlocked(part: Path) -> None:
    """Remove a part that nobody holds: in a shared folder a container has ids of its own."""
    with contextlib.suppress(OSError), part.open("rb") as stream:
        if _try_lock(stream):
            part.unlink()


def _try_lock(stream: IO[Any]) -> bool:
    """Lock an open file for this process; the end of the process frees it."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover (Windows: an open file cannot be removed there anyway)
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
