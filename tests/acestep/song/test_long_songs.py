"""Every kind of file at every length, by processes whose stack is small."""

from __future__ import annotations

import subprocess
import sys

import pytest

from acestep.song.formats import FORMATS

CHILD = """
import os, resource, sys, tempfile
resource.setrlimit(resource.RLIMIT_STACK, (1024 * 1024, 1024 * 1024))
if os.environ.get("SMALL") != "1":
    # The main thread's stack keeps the limit it started under.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "SMALL": "1"})
import torch
from acestep.song import audio_files
noise = torch.randn(2, 48000, generator=torch.Generator().manual_seed(0)) / 20
for case in sys.argv[1:]:
    kind, seconds, channels = case.split(":")
    audio = noise[: int(channels)].repeat(1, int(seconds))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"song.{kind}")
        audio_files.write(path, audio)
        read = audio_files.read(path)
        print(case, read.shape[-1] - audio.shape[-1], len(os.listdir(folder)), flush=True)
"""
# The encoders' time is that of the music; the rest of the table is a soak.
QUICK = [("ogg", 44, 2), ("ogg", 44, 1), *((kind, 10, 2) for kind in FORMATS)]
REST = [
    (kind, seconds, channels)
    for kind in FORMATS
    for seconds in (10, 44, 240, 600)
    for channels in (1, 2)
    if (kind, seconds, channels) not in QUICK
]


@pytest.mark.skipif(sys.platform == "win32", reason="its stacks are those of the program's file")
@pytest.mark.parametrize(
    "table",
    [
        pytest.param(QUICK, id="quick"),
        *(
            pytest.param(
                [case for case in REST if case[0] == kind], id=kind, marks=pytest.mark.soak
            )
            for kind in FORMATS
        ),
    ],
)
def test_any_length_under_a_small_stack(table: list[tuple[str, int, int]]) -> None:
    """One process for many: starting it takes longer than short songs do."""
    cases = [f"{kind}:{seconds}:{channels}" for kind, seconds, channels in table]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *cases], capture_output=True, text=True, check=False
    )
    told = [line.split() for line in done.stdout.splitlines()]
    assert [case for case, *_ in told] == cases, f"it ended there: {done.stderr[-500:]}"
    assert done.returncode == 0
    for case, more, files in told:
        exact = not case.startswith("aac:")
        assert int(more) == 0 if exact else 1024 <= int(more) < 3 * 1024, case
        assert files == "1", case
