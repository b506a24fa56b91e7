"""A song in the kind of file that its owner asks for, made when it is first asked for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from acestep.gradio_ui.store import Store, StoredSong
from acestep.song import formats, tags

_ONE_AT_A_TIME = threading.Lock()
_RATE = 48000


def kinds() -> tuple[str, ...]:
    """The kinds that can be written here."""
    foreign = formats.has_pyav()
    return tuple(kind for kind, made in formats.FORMATS.items() if foreign or not made.foreign)


def file_of(store: Store, owner: str, song_id: str, name: str) -> Path | None:
    """A file of a visitor's song, encoded anew where it is audio of another kind.

    Returns:
        None where there is no such song or file.

    Raises:
        RequestError: the song cannot be read.
        OSError: the file cannot be written.
    """
    if path := store.path(owner, song_id, name):
        return path
    kind = name.removeprefix("song.")
    song = store.get(owner, song_id)
    if song is None or name != f"song.{kind}" or kind not in kinds():
        return None
    with _ONE_AT_A_TIME:
        return store.path(owner, song_id, name) or _encoded(store, owner, song, kind)


def _encoded(store: Store, owner: str, song: StoredSong, kind: str) -> Path | None:
    from acestep.song import audio_files

    source = store.path(owner, song.id, song.audio)
    if source is None:
        return None
    target = source.with_name(f"song.{kind}")
    with store.work_folder() as folder:
        part = folder / target.name
        said = tags.of_record({**song.made, "seed": song.seed})
        samples = audio_files.read(source, _RATE)
        audio_files.encode(part, samples, _RATE, formats.encoding(kind), said)
        part.rename(target)
    # A song's age counts from its making, not from that of a file beside it.
    os.utime(source.parent, (song.created, song.created))
    return target
