"""Says in an audio file what it is: title, prompt, seed, key and tempo."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOFTWARE = "acestep"
_TITLE = 60
_KEY = re.compile(r"([A-G])([#b♯♭]?) (major|minor)")
_ITUNES = "----:com.apple.iTunes:"


@dataclass(frozen=True)
class Tags:
    """What is known of a song; empty and None leave a field out.

    Attributes:
        title: a short name.
        comment: the whole prompt.
        seed: it was made from.
        key: as DJ software writes it, for example `F#m`.
        bpm: beats a minute.
    """

    title: str = ""
    comment: str = ""
    seed: int | None = None
    key: str = ""
    bpm: int | None = None


def of_record(record: Mapping[str, Any]) -> Tags:
    """The tags of a song from what `inference.describe` says of it."""
    # The person's own words, whatever a planner made of them.
    asked = record.get("asked") or {}
    prompt = asked.get("caption") or record.get("caption") or record.get("task") or ""
    prompt = " ".join(str(prompt).split())
    return Tags(
        title=title_of(prompt),
        comment=prompt,
        seed=record.get("seed"),
        key=short_key(str(record.get("key") or "")),
        bpm=record.get("bpm"),
    )


def title_of(prompt: str) -> str:
    """The first words of a prompt, at most 60 characters."""
    text = " ".join(prompt.split())
    if len(text) <= _TITLE:
        return text
    words = text[:_TITLE].rsplit(" ", 1)[0] if " " in text[:_TITLE] else text[: _TITLE - 1]
    return words.rstrip(" ,;:.-") + "…"


def short_key(key: str) -> str:
    """`F# minor` as `F#m`, `C major` as `C`; anything else as it is."""
    known = _KEY.fullmatch(key.strip())
    if known is None:
        return key
    accidental = known[2].replace("♯", "#").replace("♭", "b")
    return known[1] + accidental + ("m" if known[3] == "minor" else "")


def write(path: Path, kind: str, tags: Tags) -> None:
    """Put tags into a finished file, in its kind's own way; a bare AAC stream holds none.

    Args:
        path: of the file, whatever its name ends in.
        kind: a key of `formats.FORMATS`.
        tags: what to say.

    Raises:
        OSError: the file cannot be written.
    """
    # An extra: its licence is not for everybody, and a song without tags is a song.
    if importlib.util.find_spec("mutagen") is not None:
        _WRITERS[kind](path, tags)


def _vorbis(path: Path, tags: Tags, file: Any) -> None:
    for name, value in {
        "TITLE": tags.title,
        "COMMENT": tags.comment,
        "SEED": tags.seed,
        "KEY": tags.key,
        "BPM": tags.bpm,
        "SOFTWARE": SOFTWARE,
    }.items():
        if value not in (None, ""):
            file[name] = str(value)
    file.save()


def _flac(path: Path, tags: Tags) -> None:
    from mutagen.flac import FLAC

    _vorbis(path, tags, FLAC(path))


def _ogg(path: Path, tags: Tags) -> None:
    from mutagen.oggvorbis import OggVorbis

    _vorbis(path, tags, OggVorbis(path))


def _opus(path: Path, tags: Tags) -> None:
    from mutagen.oggopus import OggOpus

    _vorbis(path, tags, OggOpus(path))


def _id3(file: Any, tags: Tags) -> None:
    from mutagen import id3

    if file.tags is None:
        file.add_tags()
    utf8 = 3
    frames = (
        (id3.TIT2, (), tags.title),
        (id3.COMM, ("XXX", ""), tags.comment),
        (id3.TXXX, ("SEED",), tags.seed),
        (id3.TKEY, (), tags.key),
        (id3.TBPM, (), tags.bpm),
        (id3.TSSE, (), SOFTWARE),
    )
    for frame, described, value in frames:
        if value not in (None, ""):
            file.tags.add(frame(utf8, *described, str(value)))
    # The older version is the one that every player reads.
    file.save(v2_version=3)


def _mp3(path: Path, tags: Tags) -> None:
    from mutagen.mp3 import MP3

    _id3(MP3(path), tags)


def _wav(path: Path, tags: Tags) -> None:
    from mutagen.wave import WAVE

    _id3(WAVE(path), tags)


def _m4a(path: Path, tags: Tags) -> None:
    from mutagen.mp4 import MP4

    file = MP4(path)
    plain = {"\xa9nam": tags.title, "\xa9cmt": tags.comment, "\xa9too": SOFTWARE}
    for name, text in plain.items():
        if text:
            file[name] = [text]
    if tags.bpm is not None:
        file["tmpo"] = [int(tags.bpm)]
    for name, value in {"initialkey": tags.key, "SEED": tags.seed}.items():
        if value not in (None, ""):
            file[_ITUNES + name] = [str(value).encode()]
    file.save()


def _none(path: Path, tags: Tags) -> None:
    """A bare AAC stream: players stumble over what stands before its first frame."""


_WRITERS = {
    "flac": _flac, "wav": _wav, "mp3": _mp3, "ogg": _ogg, "opus": _opus, "m4a": _m4a, "aac": _none,
}  # fmt: skip
