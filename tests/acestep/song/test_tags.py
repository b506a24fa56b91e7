"""Tests of what audio files say of themselves, read back by their own rules."""

from __future__ import annotations

from pathlib import Path

import mutagen
import pytest
import torch

from acestep.song import audio_files, tags

RECORD = {"caption": "warm lo-fi piano, räin", "seed": 7, "key": "F# minor", "bpm": 90}


@pytest.fixture
def tagged(tmp_path: Path) -> dict[str, mutagen.FileType]:
    files = {}
    for kind in audio_files.FORMATS:
        path = tmp_path / f"song.{kind}"
        audio_files.write(path, torch.full((2, 4800), 0.1), tags=tags.of_record(RECORD))
        files[kind] = mutagen.File(path)
    return files


def test_every_kind_says_what_it_can(tagged: dict[str, mutagen.FileType]) -> None:
    prompt = RECORD["caption"]
    for kind in ("flac", "ogg", "opus"):
        found = {name: tagged[kind][name] for name in ("title", "comment", "seed", "key", "bpm")}
        assert found == {
            "title": [prompt], "comment": [prompt], "seed": ["7"], "key": ["F#m"], "bpm": ["90"],
        }, kind  # fmt: skip
        assert tagged[kind]["software"] == ["acestep"]
    for kind in ("mp3", "wav"):
        names = ("TIT2", "COMM::XXX", "TXXX:SEED", "TKEY", "TBPM", "TSSE")
        found = [str(tagged[kind][name]) for name in names]
        assert found == [prompt, prompt, "7", "F#m", "90", "acestep"], kind
    m4a = tagged["m4a"]
    assert (m4a["\xa9nam"], m4a["\xa9cmt"], m4a["tmpo"]) == ([prompt], [prompt], [90])
    assert m4a["----:com.apple.iTunes:initialkey"] == [b"F#m"]
    assert m4a["----:com.apple.iTunes:SEED"] == [b"7"]
    assert tagged["aac"].tags is None


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "song.flac"
    audio_files.write(path, torch.full((2, 480), 0.1), tags=tags.of_record({"task": "extract"}))
    assert sorted(name for name, _ in mutagen.File(path).tags) == ["COMMENT", "SOFTWARE", "TITLE"]


def test_a_title_is_the_first_words() -> None:
    assert tags.title_of("piano") == "piano"
    words = " ".join(["word"] * 30)
    assert tags.title_of(words) == " ".join(["word"] * 12) + "…"
    assert tags.title_of("x" * 99) == "x" * 59 + "…"
    assert len(tags.title_of("a b, " * 50)) <= 60


@pytest.mark.parametrize(
    ("key", "short"),
    [("C major", "C"), ("F# minor", "F#m"), ("B♭ major", "Bb"), ("", ""), ("odd", "odd")],
)
def test_keys_are_short(key: str, short: str) -> None:
    assert tags.short_key(key) == short


def test_without_the_extra_a_song_has_no_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    path = tmp_path / "song.flac"
    path.write_bytes(b"never opened")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tags.write(path, "flac", tags.Tags(title="x"))
    assert path.read_bytes() == b"never opened"
