"""Tests of files that appear whole, and that replace others only where asked."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from acestep.errors import RequestError
from acestep.song import placing


def test_a_failure_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "song.txt"
    path.write_text("old")
    with (
        pytest.raises(RequestError, match=r"cannot write .*song\.txt"),
        placing.replacing(path),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), placing.replacing(path) as part:
        part.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["song.txt"]
    with placing.replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~placing._umask()


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "song.txt"
    path.write_text("old")
    with (
        pytest.raises(placing.TakenError, match=r"song\.txt exists and is kept"),
        placing.replacing(path, overwrite=False) as part,
    ):
        part.write_text("new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["song.txt"]


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "song.txt"
    with placing.part_beside(path) as part:
        part.write_text("new")
        path.write_text("theirs")
        placed = placing.place(part, [path, tmp_path / "song-2.txt"])
    assert (path.read_text(), placed.read_text()) == ("theirs", "new")
    assert placed.name == "song-2.txt"
    assert placed.stat().st_nlink == 1


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT and some shares have none; the name itself is then what decides."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "song.txt"
    with placing.replacing(path, overwrite=False) as part:
        part.write_text("first")
    with (
        pytest.raises(placing.TakenError),
        placing.replacing(path, overwrite=False) as part,
    ):
        part.write_text("second")
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["song.txt"]


def _race(folder: str, number: int) -> None:
    names = [Path(folder) / f"song-{n}.txt" for n in range(1, 99)]
    for _ in range(10):
        with placing.part_beside(names[0]) as part:
            part.write_text(str(number))
            placing.place(part, names)


def test_of_many_processes_each_gets_a_name_of_its_own(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    runners = [spawn.Process(target=_race, args=(str(tmp_path), n)) for n in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
        assert runner.exitcode == 0
    texts = sorted(path.read_text() for path in tmp_path.iterdir())
    assert texts == sorted(str(n) for n in range(4) for _ in range(10))
    assert {path.name for path in tmp_path.iterdir()} == {f"song-{n}.txt" for n in range(1, 41)}


KILLED = """
import os, signal, sys
from pathlib import Path
from acestep.song import placing
with placing.part_beside(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_crash_left_goes_and_what_others_make_stays(tmp_path: Path) -> None:
    path = tmp_path / "song.txt"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode < 0
    (left,) = tmp_path.iterdir()
    foreign = tmp_path / ".song.txt.abc.part"
    foreign.touch()
    with placing.part_beside(tmp_path / "other.txt") as part:
        assert not left.exists()
        placing._swept.clear()
        with placing.replacing(path) as second:
            assert part.exists(), "a part of a living process is its own"
            second.write_text("whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".song.txt.abc.part", "song.txt"]


def test_long_names_have_room_for_their_parts(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 120 + ".flac")
    with placing.replacing(path) as part:
        part.write_text("x")
    assert path.exists()
    with (
        pytest.raises(RequestError, match="cannot write"),
        placing.replacing(tmp_path / ("x" * 260)) as part,
    ):
        part.write_text("x")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
