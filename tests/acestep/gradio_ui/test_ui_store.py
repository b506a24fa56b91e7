"""Songs on disk: whole or not at all, each visitor's own, nothing else reachable."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.gradio_ui import downloads
from acestep.gradio_ui.limits import Limits
from acestep.gradio_ui.store import Store, StoredSong, new_id
from acestep.song import audio_files

ANNA, BERT = "a" * 32, "b" * 32


def put(store: Store, owner: str = ANNA, size: int = 10, age: float = 0.0) -> StoredSong:
    with store.work_folder() as folder:
        home = folder / "kept"
        home.mkdir()
        (home / "song.flac").write_bytes(bytes(size))
        song = StoredSong(new_id(), "a song", time.time() - age, 1.0, 7, "song.flac")
        store.add(owner, song, home)
    kept = store.root / owner / song.id
    if kept.is_dir():
        os.utime(kept, (time.time() - age,) * 2)
    return song


def test_a_song_is_listed_served_and_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    song = put(store)
    assert store.list(ANNA) == [song]
    assert store.list(BERT) == []
    assert store.path(ANNA, song.id, "song.flac") is not None
    assert store.path(BERT, song.id, "song.flac") is None
    assert not store.delete(BERT, song.id)
    assert store.delete(ANNA, song.id)
    assert not store.delete(ANNA, song.id)
    store.prune()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60)
@given(song=st.text(max_size=30), name=st.text(max_size=30))
def test_no_name_leads_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, song: str, name: str
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "names")
    for tried in (song, "../" + song, "0" * 16):
        assert store.path(ANNA, tried, name) is None
        assert store.get(ANNA, tried) is None
        assert not store.delete(ANNA, tried)


def test_links_and_broken_records_are_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path / "songs")
    song = put(store)
    folder = store.root / ANNA / song.id
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / "song.lrc").symlink_to(secret)
    assert store.path(ANNA, song.id, "song.lrc") is None
    assert store.path(ANNA, song.id, "record.json") is None
    (folder / "record.json").write_text("{half")
    assert store.list(ANNA) == []
    with pytest.raises(ValueError, match="32 hexadecimal"):
        store.list("../../etc")


def test_cleaned_by_age_size_and_number(tmp_path: Path) -> None:
    store = Store(tmp_path, Limits(keep_seconds=100, keep_bytes=5000, songs_per_visitor=2))
    put(store, age=1000)
    fresh = put(store)
    store.prune()
    assert store.list(ANNA) == [fresh]
    for _ in range(3):
        newest = put(store, size=300)
    assert len(store.list(ANNA)) == 2
    assert store.list(ANNA)[0] == newest
    large = put(store, BERT, size=4600)
    store.prune()
    assert store.get(BERT, large.id) is not None
    count, size = store.usage()
    assert (count, size <= 5000) == (1, True)


def test_a_song_is_changed_whole_and_keeps_its_age(tmp_path: Path) -> None:
    store = Store(tmp_path, Limits(songs_per_visitor=2))
    song = put(store, age=50)
    before = (store.root / ANNA / song.id).stat().st_mtime
    changed = store.change(ANNA, song.id, title="other", favourite=True)
    assert changed == store.get(ANNA, song.id)
    assert changed is not None
    assert (changed.title, changed.favourite, changed.seed) == ("other", True, song.seed)
    assert (store.root / ANNA / song.id).stat().st_mtime == pytest.approx(before, abs=1)
    assert store.change(BERT, song.id, title="theirs") is None
    assert not list(tmp_path.rglob("*.part"))
    # Favourites go last when there are too many.
    put(store, age=10)
    newest = put(store)
    assert [s.id for s in store.list(ANNA)] == [newest.id, song.id]


@pytest.mark.parametrize("kind", ["flac", "wav", "mp3", "ogg", "opus", "m4a"])
def test_a_song_as_any_kind_of_file(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    with store.work_folder() as folder:
        home = folder / "kept"
        home.mkdir()
        sound = np.sin(np.arange(48000) / 20)[:, None].repeat(2, 1) * 0.5
        soundfile.write(home / "song.wav", sound, 48000)
        made = {"caption": "a tone", "bpm": 90}
        song = store.add(
            ANNA, StoredSong(new_id(), "a", time.time(), 1.0, 7, "song.wav", made=made), home
        )
    path = downloads.file_of(store, ANNA, song.id, f"song.{kind}")
    assert path is not None
    assert audio_files.read(path).shape[-1] == 48000
    assert downloads.file_of(store, ANNA, song.id, f"song.{kind}") == path
    for owner, name in ((BERT, f"song.{kind}"), (ANNA, "song.exe"), (ANNA, "../song.flac")):
        assert downloads.file_of(store, owner, song.id, name) is None
    if kind == "mp3":
        assert "a tone".encode("utf-16-le") in path.read_bytes()
    assert not list(store.root.glob(".work-*"))


def test_what_a_crash_left_is_removed_and_what_others_make_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    dead, other = tmp_path / ".work-999999999-x", tmp_path / f".work-{os.getpid()}-y"
    dead.mkdir()
    other.mkdir()
    store.clear_work()
    assert not dead.exists()
    assert other.exists()
    os.utime(other, (0, 0))
    store.prune()
    assert not other.exists()
