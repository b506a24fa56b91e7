"""FLAC encoded by several threads is the file that libsndfile writes by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from acestep.song import audio_files, flac


@pytest.mark.parametrize(("bits", "channels", "extra"), [(24, 2, 0), (16, 2, 1), (24, 1, 5000)])
def test_the_bytes_are_those_of_one_thread(
    bits: int, channels: int, extra: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 128 frames, whose numbers take two bytes; silence and noise, whose frames differ. On a
    system without files in memory, too, and without writing of several parts at a time."""
    # Pieces of five frames: there are many to be joined.
    monkeypatch.setattr(flac, "PIECE", 5 * flac.BLOCK)
    if channels == 1:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.delattr(os, "writev", raising=False)
    generator = np.random.default_rng(bits)
    samples = 130 * flac.BLOCK + extra
    whole = generator.integers(-(2**28), 2**28, (samples, channels), np.int32)
    whole[50_000:90_000] = 0
    whole >>= np.arange(samples, dtype=np.int32)[:, None] % 3000 // 200
    whole = whole >> (32 - bits) << (32 - bits)
    alone, together = tmp_path / "alone.flac", tmp_path / "together.flac"
    soundfile.write(alone, whole, 48000, subtype=f"PCM_{bits}", compression_level=flac.LEVEL)
    stream = flac.Stream(samples, channels, 48000, bits)
    flac.write(together, stream, lambda start, end: whole[start:end], 3)
    assert together.read_bytes() == alone.read_bytes()


def test_a_song_is_written_so_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[flac.Stream] = []
    write = flac.write
    monkeypatch.setattr(flac, "threads", lambda: 2)
    monkeypatch.setattr(
        flac, "write", lambda path, *rest: (used.append(rest[0]), write(path, *rest))
    )
    song = torch.rand(2, flac.PIECE + 30_001, generator=torch.Generator().manual_seed(2)) - 0.5
    path = tmp_path / "song.flac"
    audio_files.write(path, song, tags=audio_files.Tags("a", "b", 1))
    assert [stream.samples for stream in used] == [song.shape[1]]
    again = audio_files.read(path)
    assert again.shape == song.shape
    assert (again - song).abs().max() <= 2.0**-24
    with pytest.raises(OSError, match="ormat"):
        write(path, flac.Stream(10, 9, 48000, 24), lambda *_: np.zeros((10, 9), np.int32))


@pytest.mark.parametrize("reader", ["flac", "ffmpeg"])
def test_other_readers_take_it(reader: str, tmp_path: Path) -> None:
    """libFLAC's own program with its check of the MD5, and ffmpeg with its checks of every frame."""
    program = shutil.which(reader)
    if program is None:
        pytest.skip(f"{reader} is not installed; on Debian: apt-get install {reader}")
    song = torch.rand(2, 2 * flac.PIECE + 4711, generator=torch.Generator().manual_seed(3)) - 0.5
    song[:, 9000:60_000] = 0.0
    path = tmp_path / "song.flac"
    audio_files.encode(path, song, 48000, audio_files.encoding("flac"))
    check = {
        "flac": ["-t", "--warnings-as-errors", "--silent", str(path)],
        "ffmpeg": ["-v", "error", "-xerror", "-err_detect", "crccheck+explode", "-i", str(path), "-f", "null", "-"],
    }[reader]  # fmt: skip
    done = subprocess.run([program, *check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    done = subprocess.run([program, *check], capture_output=True, text=True, check=False)
    assert done.returncode != 0 or done.stderr, "a reader that minds nothing shows nothing"


@pytest.mark.parametrize("number", [0, 127, 128, 2047, 2048, 65535, 65536, 2**21, 2**26, 2**31 - 1])
def test_frames_of_any_number(number: int) -> None:
    """Coded as UTF-8 codes a letter; and the checksum of a frame is what is computed in full."""
    if number < 0xD800:
        assert flac._coded(number) == chr(number).encode()
    coded = flac._coded(number)
    assert flac._digits(coded[0]) == len(coded)
    header = bytes([0xFF, 0xF8, 0xC9, 0x18]) + flac._coded(300)
    frame = header + bytes([flac._crc8(header)]) + bytes(range(200))
    frame += flac._crc16(frame).to_bytes(2, "big")
    new = b"".join(flac._renumbered(frame, number))
    assert flac._crc16(new) == 0
    assert new[4 : 4 + len(coded)] == coded
    assert flac._crc8(new[: 5 + len(coded)]) == 0
    assert new[5 + len(coded) : -2] == bytes(range(200))
