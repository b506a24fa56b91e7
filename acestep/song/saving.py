"""Puts a song and the record of how it was made beside each other, under names of their own."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from acestep.song import tags
from acestep.song.audio_files import encode
from acestep.song.formats import FORMATS, Encoding
from acestep.song.placing import part_beside, place


def save(
    paths: Iterable[Path],
    audio: torch.Tensor,
    sample_rate: int,
    record: Mapping[str, Any],
    how: Encoding,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a song and its record.

    Args:
        paths: names for the song in one folder, in order of preference; the first that is free
            is taken, which the file system decides, or, to overwrite, the first.
        audio: `[channels, samples]`.
        sample_rate: Hz.
        record: how it was made; also tells what the file says of itself.
        how: the kind of file.
        overwrite: whether files of these names may be replaced.

    Returns:
        Where the song is. Its record lies at `record_path` of that.

    Raises:
        TakenError: no name is free.
        RequestError: the folder cannot be written to; neither file is left behind new.
    """
    names = iter(paths)
    first = next(names)
    with part_beside(first) as song, part_beside(first) as beside:
        # Both are whole before either is placed: a full disk shows here.
        beside.write_text(_text(record, first), encoding="utf-8")
        encode(song, audio, sample_rate, how, tags.of_record(record))
        path = place(song, itertools.chain([first], names), overwrite=overwrite)
        if path != first:
            beside.write_text(_text(record, path), encoding="utf-8")
        if overwrite:
            place(beside, [record_path(path)], overwrite=True)
        else:
            place(beside, record_paths(path))
    return path


def record_paths(song: Path) -> tuple[Path, Path]:
    """Where a song's record may lie: `song.json`, or `song.flac.json` where that is taken."""
    return song.with_suffix(".json"), song.with_name(f"{song.name}.json")


def record_path(song: Path) -> Path:
    """Where the record of a song lies or, made again, goes: never over that of another song."""
    short, full = record_paths(song)
    if _file_of(full) == song.name or (short.exists() and _is_of_another(short, song)):
        return full
    return short


def numbered(folder: Path, kind: str) -> Iterator[Path]:
    """`song-1.flac`, `song-2.flac`, …, from after the highest number in a folder."""
    found = (re.fullmatch(r"song-(\d+)\..*", path.name) for path in _listed(folder))
    start = max((int(match[1]) for match in found if match), default=0) + 1
    return (folder / f"song-{number}.{kind}" for number in itertools.count(start))


def alternatives(path: Path) -> Iterator[Path]:
    """`song.flac`, then `song-2.flac`, `song-3.flac`, …."""
    more = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return itertools.chain([path], more)


def _text(record: Mapping[str, Any], song: Path) -> str:
    told = {"file": song.name, **record}
    text = json.dumps(told, ensure_ascii=False, indent=2, default=str) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # the name of a file in another encoding
        return json.dumps(told, indent=2, default=str) + "\n"
    return text


def _is_of_another(record: Path, song: Path) -> bool:
    """Whether a record tells of another song that is there."""
    file = _file_of(record)
    if file is not None:
        return file != song.name and (song.parent / file).exists()
    kinds = (f".{kind}" for kind in FORMATS)
    return any(song.with_suffix(kind).exists() for kind in kinds if kind != song.suffix.lower())


def _file_of(record: Path) -> str | None:
    """The song that a record names, or None."""
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    file = told.get("file") if isinstance(told, dict) else None
    return file if isinstance(file, str) else None


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
