"""Tests of the reader of foreign audio, here and as a program of its own."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.errors import RequestError
from acestep.song import audio_files, decoder, sandbox


def tone(seconds: float = 0.5, rate: int = 44100, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def test_the_decoder_is_confined() -> None:
    """Its limits hold, seen from a process that sets them upon itself."""
    code = (
        "import runpy, sys; d = runpy.run_path(sys.argv[1]); d['confine'](5, 2**30)\n"
        "import resource; print(resource.getrlimit(resource.RLIMIT_CPU)[0])\n"
        "try: bytearray(2**31)\n"
        "except MemoryError: print('held')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, decoder.__file__], capture_output=True, text=True, check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["5", "held"]


def wav_header(channels: int, rate: int, size: int) -> bytes:
    fmt = struct.pack("<HHIIHH", 1, channels, rate, 0, min(channels * 2, 65535), 16)
    data = b"fmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WAVE" + data + bytes(2000)


@settings(max_examples=40)
@given(
    channels=st.integers(0, 65535), rate=st.integers(0, 2**32 - 1), size=st.integers(0, 2**32 - 1)
)
def test_any_header_is_audio_or_refused(
    tmp_path_factory: pytest.TempPathFactory, channels: int, rate: int, size: int
) -> None:
    source = tmp_path_factory.getbasetemp() / "header.wav"
    source.write_bytes(wav_header(channels, rate, size))
    try:
        samples = decoder.read(str(source), 1.0)
    except decoder.Refused:
        return
    assert samples.shape[1] == 2
    assert np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (tone(2.0), 44100, "longer than 1 s"),
        (tone(0.01), 44100, "shorter than"),
        (tone(1.0, 1000), 1000, "sample rate of 1000 Hz"),
        (tone(0.5, channels=9), 44100, "9 channels"),
        (np.full((9000, 1), np.nan, np.float32), 44100, "not numbers"),
    ],
)
def test_the_decoder_says_what_is_wrong(
    tmp_path: Path, samples: np.ndarray, rate: int, words: str
) -> None:
    source = tmp_path / "a.wav"
    soundfile.write(source, samples, rate, subtype="FLOAT")
    with pytest.raises(decoder.Refused, match=words):
        decoder.read(str(source), 1.0, 0.1)


def test_the_decoder_as_a_program(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr(decoder, "confine", lambda *limits: None)
    source = tmp_path / "a.wav"
    soundfile.write(source, tone(0.5), 44100)
    bounds = ("10", "0.1", "5", str(2**30))
    assert decoder.main([str(source), "48000", *bounds]) == 0
    samples = np.frombuffer(capsysbinary.readouterr().out, np.float32).reshape(-1, 2)
    assert np.array_equal(samples, decoder.read(str(source), 10))
    assert decoder.main([str(source), "48000", "0.2", *bounds[1:]]) == decoder.REFUSED
    assert b"longer than 0.2 s" in capsysbinary.readouterr().err
    source.write_bytes(b"nothing")
    assert decoder.main([str(source), "48000", *bounds]) == decoder.REFUSED
    assert b"not readable" in capsysbinary.readouterr().err


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus"])
def test_blocks_are_the_whole(tmp_path: Path, kind: str) -> None:
    """Going back between blocks, as soundfile does, leaves clicks in what an MP3 decoder gives."""
    path = tmp_path / f"song.{kind}"
    seconds = np.arange(3 * 48000) / 48000
    sweep = np.sin(2 * np.pi * (200 + 300 * seconds) * seconds) / 2
    audio_files.write(path, torch.from_numpy(np.stack([sweep, -sweep]).astype(np.float32)))
    whole, _ = soundfile.read(path, dtype="float32")
    assert np.array_equal(decoder.read(str(path), 10), whole)


def test_the_same_samples_here_and_there(tmp_path: Path) -> None:
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(2.0), 44100)
    there = sandbox.decoded(path, sandbox.Allowance(10))
    assert np.array_equal(there.T, audio_files.read(path).numpy())


def test_a_reader_that_dies_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tone.ogg"
    soundfile.write(path, tone(2.0), 44100)
    with pytest.raises(sandbox.TooMuchError):
        sandbox.decoded(path, sandbox.Allowance(10, memory=64 * sandbox.MIB))


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus", "m4a", "aac", "flac", "wav"])
def test_damaged_files_are_audio_or_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"song.{kind}"
    audio_files.write(path, torch.from_numpy(tone(0.5, 48000, 2).T.copy()))
    whole = path.read_bytes()
    generator = np.random.default_rng(len(kind))
    damaged = bytearray(whole)
    for place in generator.integers(0, len(whole), 40):
        damaged[place] = generator.integers(0, 256)
    for content in (whole[: len(whole) // 3], bytes(damaged)):
        path.write_bytes(content)
        try:
            audio = audio_files.read(path)
        except RequestError as error:
            assert "\n" not in str(error)
        else:
            assert audio.shape[0] == 2
            assert torch.isfinite(audio).all()


def test_ffmpeg_follows_no_playlist(tmp_path: Path) -> None:
    """A file that names other files or addresses is no audio, whatever it is called."""
    secret = tmp_path / "secret.m4a"
    audio_files.write(secret, torch.from_numpy(tone(0.5, 48000, 2).T.copy()))
    for text in (
        f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
        f"ffconcat version 1.0\nfile {secret.name}\n",
    ):
        path = tmp_path / "song.m4a"
        path.write_text(text)
        with pytest.raises(RequestError, match="not readable as audio"):
            audio_files.read(path)
