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
kind, seconds, channels = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
noise = torch.randn(channels, 48000, generator=torch.Generator().manual_seed(0)) / 20
audio = noise.repeat(1, seconds)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, f"song.{kind}")
    audio_files.write(path, audio)
    read = audio_files.read(path)
    print(read.shape[-1] - audio.shape[-1], len(os.listdir(folder)))
"""
# The encoders' time is that of the music; the rest of the table is a soak.
QUICK = {("ogg", 44, 2), ("ogg", 44, 1), *((kind, 10, 2) for kind in FORMATS)}
TABLE = [
    pytest.param(
        kind, seconds, channels,
        marks=() if (kind, seconds, channels) in QUICK else pytest.mark.soak,
    )
    for kind in FORMATS
    for seconds in (10, 44, 240, 600)
    for channels in (1, 2)
]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="its stacks are those of the program's file")
@pytest.mark.parametrize(("kind", "seconds", "channels"), TABLE)
def test_any_length_under_a_small_stack(kind: str, seconds: int, channels: int) -> None:
    arguments = [kind, str(seconds), str(channels)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    more, files = map(int, done.stdout.split())
    assert more == 0 if kind != "aac" else 1024 <= more < 3 * 1024
    assert files == 1
