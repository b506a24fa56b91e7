"""A run's folder is gone with it: when it ends, when a signal ends it, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from conformance.trees import scratch


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def forked(call: Any) -> int:
    """The exit status of a call in a copy of this process."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        call()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended_by(number: int) -> Any:
    def call() -> None:
        folder = scratch.begin()
        (folder / "song").write_text("half")
        os.kill(os.getpid(), number)
        time.sleep(60)

    return call


def test_a_signal_leaves_nothing(tmp_path: Path) -> None:
    assert forked(ended_by(signal.SIGTERM)) == -signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_what_a_kill_leaves_the_next_run_sweeps(tmp_path: Path) -> None:
    assert forked(ended_by(signal.SIGKILL)) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "song").exists()
    young, old, other = (tmp_path / f"{scratch.PREFIX}{n}" for n in ("young", "old", "other"))
    for folder in (young, old):
        folder.mkdir()
    other.write_text("a file")
    os.utime(old, (1, 1))
    before = os.environ.get("TMPDIR")
    with scratch.lent() as first, scratch.lent() as second:
        assert os.environ["TMPDIR"] == str(second)
        assert {first, second, young, other} == set(tmp_path.iterdir())
    assert {young, other} == set(tmp_path.iterdir())
    assert os.environ.get("TMPDIR") == before


def test_processes_end_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def call() -> None:
        scratch.begin()
        with subprocess.Popen(["sleep", "60"]) as sleeper:
            scratch.children.append(sleeper)
            pid.write_text(str(sleeper.pid))
            os.kill(os.getpid(), signal.SIGTERM)

    assert forked(call) == -signal.SIGTERM
    deadline = time.monotonic() + 10
    while _is_alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_alive(int(pid.read_text()))


def test_another_use_of_the_signal_stays() -> None:
    def theirs(number: int, frame: Any) -> None:
        """Somebody's own."""

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with scratch.lent():
            assert signal.getsignal(signal.SIGTERM) is theirs
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with scratch.lent(), scratch.lent():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for does not."""
    status = Path(f"/proc/{pid}/stat")
    if sys.platform == "linux":
        return status.exists() and ") Z " not in status.read_text()
    return (
        subprocess.run(["kill", "-0", str(pid)], capture_output=True, check=False).returncode == 0
    )
