"""Batches over Ray, with workers that are killed while they work."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.soak
@pytest.mark.skipif(not HAS_RAY, reason="ray is an extra: pip install 'acestep[batch]'")
def test_workers_and_the_run_may_be_killed(tmp_path: Path) -> None:
    """A worker is killed, then the whole run; the next one completes what is left."""
    prompts = tmp_path / "p.jsonl"
    line = {"caption": "piano", "duration": 0.5, "inference_steps": 1}
    prompts.write_text("\n".join(json.dumps({**line, "seed": n}) for n in range(12)), "utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "acestep", "batch", str(prompts), "-o", str(out)]
    command += ["--devices", "cpu", "cpu", "--config_path", "demo", "--format", "wav"]
    first = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for(out, 2, first)
        workers = [
            child
            for child in psutil.Process(first.pid).children(recursive=True)
            if "Worker" in " ".join(child.cmdline())
        ]
        assert workers
        workers[0].kill()
        wait_for(out, 5, first)
    finally:
        for process in [*psutil.Process(first.pid).children(recursive=True), first]:
            process.send_signal(signal.SIGKILL)
        first.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in finished(out)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 done" in done.stderr
    songs = {path.name: path.stat().st_mtime_ns for path in finished(out)}
    assert len(songs) == 12
    assert kept.items() <= songs.items()
    journal = (out / "journal.jsonl").read_text(encoding="utf-8")
    assert '"failed"' not in journal, "a killed worker is no fault of its songs"


def finished(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.wav") if path.with_suffix(".json").is_file()]


def wait_for(folder: Path, songs: int, run: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if len(finished(folder)) >= songs:
            return
        assert run.poll() is None, f"the run ended by itself ({os.strerror(run.returncode)})"
        time.sleep(0.1)
    pytest.fail(f"no {songs} songs in two minutes")
