"""Songs on disk: whole or not at all, each visitor's own, nothing else reachable."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.gradio_ui.limits import Limits
from acestep.gradio_ui.store import Store, StoredSong, new_id

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
