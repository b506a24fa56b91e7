"""Tests of songs and their records beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from acestep.song import saving
from acestep.song.formats import encoding
from acestep.song.placing import TakenError

AUDIO = torch.full((2, 480), 0.1)


def saved(path: Path, caption: str, *, overwrite: bool = False) -> Path:
    kind = encoding(path.suffix[1:])
    names = [path]
    return saving.save(names, AUDIO, 48000, {"caption": caption}, kind, overwrite=overwrite)


def told(path: Path) -> tuple[str, str]:
    record = json.loads(path.read_text(encoding="utf-8"))
    return record["file"], record["caption"]


def test_two_kinds_of_one_name_have_records_of_their_own(tmp_path: Path) -> None:
    saved(tmp_path / "song.flac", "first")
    saved(tmp_path / "song.wav", "second")
    assert told(tmp_path / "song.json") == ("song.flac", "first")
    assert told(tmp_path / "song.wav.json") == ("song.wav", "second")
    for kind, record in (("wav", "song.wav.json"), ("flac", "song.json")):
        saved(tmp_path / f"song.{kind}", "again", overwrite=True)
        assert told(tmp_path / record) == (f"song.{kind}", "again")
    assert len(list(tmp_path.iterdir())) == 4


def test_nothing_that_exists_is_replaced_unasked(tmp_path: Path) -> None:
    saved(tmp_path / "song.flac", "first")
    with pytest.raises(TakenError):
        saved(tmp_path / "song.flac", "second")
    assert told(tmp_path / "song.json") == ("song.flac", "first")
    (tmp_path / "notes.json").write_text("mine")
    saved(tmp_path / "notes.wav", "third")
    assert (tmp_path / "notes.json").read_text() == "mine"
    assert told(tmp_path / "notes.wav.json") == ("notes.wav", "third")
    assert len(list(tmp_path.iterdir())) == 5


def test_a_record_of_before_files_were_named(tmp_path: Path) -> None:
    for name in ("song.flac", "both.flac", "both.wav"):
        (tmp_path / name).touch()
    for name in ("song.json", "both.json"):
        (tmp_path / name).write_text('{"caption": "old"}')
    saved(tmp_path / "song.flac", "new", overwrite=True)
    saved(tmp_path / "both.wav", "new", overwrite=True)
    assert told(tmp_path / "song.json") == ("song.flac", "new")
    assert json.loads((tmp_path / "both.json").read_text()) == {"caption": "old"}
    assert told(tmp_path / "both.wav.json") == ("both.wav", "new")


def test_numbers_go_on(tmp_path: Path) -> None:
    assert next(saving.numbered(tmp_path / "none", "flac")).name == "song-1.flac"
    (tmp_path / "song-7.wav").touch()
    (tmp_path / "song-x.wav").touch()
    assert next(saving.numbered(tmp_path, "flac")).name == "song-8.flac"
    (tmp_path / "a.flac").touch()
    placed = saving.save(
        saving.alternatives(tmp_path / "a.flac"), AUDIO, 48000, {"caption": "x"}, encoding("flac")
    )
    assert placed.name == "a-2.flac"
    assert told(tmp_path / "a-2.json") == ("a-2.flac", "x")


def test_a_failure_leaves_neither(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        saving.save(
            [tmp_path / "song.flac"], AUDIO.to("meta"), 48000, {"caption": "x"}, encoding("flac")
        )
    assert list(tmp_path.iterdir()) == []
