"""Songs on disk: each visitor's own, whole or not at all, cleaned by age and size."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from acestep.gradio_ui.limits import Limits
from acestep.song.formats import FORMATS

RECORD = "record.json"
FILES = frozenset(
    {
        *(f"song.{kind}" for kind in FORMATS),
        *("song.json", "song.lrc", "alignment.png", "spectrogram.png"),
    }
)
"""The only names that are ever served."""

_OWNER = re.compile(r"[0-9a-f]{32}")
_SONG = re.compile(r"[0-9a-f]{16}")
_WORK = ".work-"


@dataclass(frozen=True)
class StoredSong:
    """A finished song.

    Attributes:
        id: names its folder.
        title: its prompt, shortened.
        created: seconds since 1970.
        seconds: of audio.
        seed: it was made from.
        audio: the name of its audio file.
        asked: the values of the form it was made with.
        made: everything needed to make it again, as `inference.describe` gives it.
        peaks: loudest sample of each of equal parts, 0 to 1, for the waveform.
        lines: timed lyrics, (start, end, text).
        score: the lyric score's figures, or None.
        warnings: what was changed to stay within limits.
        files: names of what can be downloaded.
        favourite: whether the visitor marked it; such songs go last when there are too many.
        wordless: whether what made it cannot sing, so that times of its lyrics mean nothing.
        idea: what the visitor said, where a language model made the prompt of it.
        kind: `song`, or `align` for a recording whose lyrics were timed.
    """

    id: str
    title: str
    created: float
    seconds: float
    seed: int
    audio: str
    asked: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)
    lines: list[tuple[float, float, str]] = field(default_factory=list)
    score: dict[str, float] | None = None
    warnings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    favourite: bool = False
    wordless: bool = False
    idea: str = ""
    kind: str = "song"


class Store:
    """A folder of songs.

    Args:
        root: the folder; made when needed. Only its owner can read what it holds.
        limits: how much and how long to keep.
    """

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self.root, self.limits = root, limits or Limits()
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.prune()

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A folder for files in the making, gone at the end."""
        folder = Path(tempfile.mkdtemp(prefix=f"{_WORK}{os.getpid()}-", dir=self.root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, owner: str, song: StoredSong, folder: Path) -> StoredSong:
        """Keep a song whose files lie in a folder; the folder becomes the store's.

        The record is written first and the folder renamed last, so a song is listed only
        when all of it is there.
        """
        (folder / RECORD).write_text(json.dumps(asdict(song), ensure_ascii=False), "utf-8")
        home = self._home(owner)
        with self._lock:
            home.mkdir(exist_ok=True, mode=0o700)
            os.rename(folder, home / song.id)
        self.prune(owner)
        return song

    def list(self, owner: str) -> list[StoredSong]:
        """A visitor's songs, newest first."""
        home = self._home(owner)
        ids = os.listdir(home) if home.is_dir() else []
        songs = [song for song in (self.get(owner, key) for key in ids) if song]
        return sorted(songs, key=lambda song: (-song.created, song.id))

    def get(self, owner: str, song_id: str) -> StoredSong | None:
        """A visitor's song, or None if there is none of that id."""
        if not _SONG.fullmatch(song_id):
            return None
        try:
            return StoredSong(**json.loads((self._home(owner) / song_id / RECORD).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def path(self, owner: str, song_id: str, name: str) -> Path | None:
        """The file of a visitor's song, or None; no other file can be named."""
        if not _SONG.fullmatch(song_id) or name not in FILES:
            return None
        path = self._home(owner) / song_id / name
        return path if path.is_file() and not path.is_symlink() else None

    def change(self, owner: str, song_id: str, **changes: Any) -> StoredSong | None:
        """Write other values into a song's record, whole or not at all; None if there is no song.

        Args:
            changes: fields of `StoredSong`.
        """
        with self._lock:
            song = self.get(owner, song_id)
            if song is None:
                return None
            song, folder = replace(song, **changes), self._home(owner) / song_id
            part = folder / f"{RECORD}.part"
            part.write_text(json.dumps(asdict(song), ensure_ascii=False), "utf-8")
            os.replace(part, folder / RECORD)
            # Its age counts from its making.
            os.utime(folder, (song.created, song.created))
        return song

    def delete(self, owner: str, song_id: str) -> bool:
        """Remove a visitor's song; False if there is none of that id."""
        if not _SONG.fullmatch(song_id) or not (self._home(owner) / song_id).is_dir():
            return False
        self._remove(self._home(owner) / song_id)
        return True

    def prune(self, owner: str | None = None) -> None:
        """Remove what is too old or too much, and what an interrupted run left."""
        limits, now = self.limits, time.time()
        with self._lock:
            if owner is not None:
                kept = sorted(self.list(owner), key=lambda song: not song.favourite)
                for song in kept[limits.songs_per_visitor :]:
                    self._remove(self._home(owner) / song.id)
            for folder in self.root.glob(f"{_WORK}*"):
                if now - _changed(folder) > limits.scratch_seconds:
                    self._remove(folder)
            total = 0
            for folder in sorted(self._folders(), key=_changed, reverse=True):
                total += _size(folder)
                if now - _changed(folder) > limits.keep_seconds or total > limits.keep_bytes:
                    self._remove(folder)
            for home in self.root.iterdir():
                if _OWNER.fullmatch(home.name):
                    # Empty homes go; others refuse.
                    with contextlib.suppress(OSError):
                        home.rmdir()

    def clear_work(self) -> None:
        """Remove files in the making whose process has ended, as after a crash."""
        for folder in self.root.glob(f"{_WORK}*"):
            maker = folder.name.removeprefix(_WORK).partition("-")[0]
            if not (maker.isdecimal() and psutil.pid_exists(int(maker))):
                self._remove(folder)

    def usage(self) -> tuple[int, int]:
        """How many songs are kept, and their bytes."""
        folders = list(self._folders())
        return len(folders), sum(map(_size, folders))

    def _folders(self) -> Iterator[Path]:
        for home in self.root.iterdir():
            if _OWNER.fullmatch(home.name):
                yield from home.iterdir()

    def _home(self, owner: str) -> Path:
        if not _OWNER.fullmatch(owner):
            raise ValueError("an owner is 32 hexadecimal digits")
        return self.root / owner

    def _remove(self, folder: Path) -> None:
        # Renamed first, so that nobody sees half of it.
        gone = self.root / f"{_WORK}{os.getpid()}-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def new_id() -> str:
    """A name for a song's folder that nobody can guess."""
    return secrets.token_hex(8)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _size(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
