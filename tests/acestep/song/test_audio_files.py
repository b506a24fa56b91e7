"""Tests of reading and writing songs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.errors import RequestError
from acestep.song import audio_files

# What a decoder adds: a bare AAC stream has no place for its length.
UNTRIMMED = {"aac"}
ENCODINGS = (
    ("flac", 16, None), ("flac", 24, None),
    ("wav", 16, None), ("wav", 24, None), ("wav", 32, None),
    ("mp3", None, None), ("mp3", None, 128), ("mp3", None, 320),
    ("ogg", None, None), ("opus", None, None), ("opus", None, 192),
    ("m4a", None, None), ("m4a", None, 256), ("aac", None, 128),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "bits", "rate"), ENCODINGS)
def test_round_trip(
    kind: str, bits: int | None, rate: int | None, song: torch.Tensor, tmp_path: Path
) -> None:
    """Every sample and no more comes back, at the precision asked for, and nothing is left over."""
    path = tmp_path / "deep" / f"song.{kind}"
    audio_files.write(path, song, bit_depth=bits, bitrate=rate)
    again = audio_files.read(path)
    if kind not in UNTRIMMED:
        assert again.shape == song.shape
        length = song.shape[-1]
        middle = slice(4800, length - 4800)
        error = (again[:, middle] - song[:, middle]).abs().max()
        assert error <= (2.0**-bits if bits in (16, 24) else 0.0 if bits == 32 else 0.1)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("samples", [1, 479, 4096, 48001, 100_003])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_holds_just_the_samples_given(samples: int, channels: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(samples)
    audio = torch.rand(channels, samples, generator=generator) - 0.5
    for kind in ("flac", "wav", "mp3", "ogg", "opus"):
        path = tmp_path / f"song.{kind}"
        audio_files.write(path, audio, tags=audio_files.Tags("a", "b", 1))
        assert soundfile.info(path).frames == samples, kind
        assert soundfile.info(path).channels == channels


@pytest.mark.parametrize("samples", [1, 48001])
def test_aac_holds_just_the_samples_given(samples: int, tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    audio_files.write(path, torch.full((2, samples), 0.1))
    assert audio_files.read(path).shape == (2, samples)


@pytest.mark.parametrize("bits", [16, 24])
def test_what_was_read_is_written_back_the_same(bits: int, tmp_path: Path) -> None:
    whole = np.random.default_rng(bits).integers(-(2**31), 2**31, (5000, 2), np.int32)
    whole = whole >> (32 - bits) << (32 - bits)
    for kind in ("flac", "wav"):
        first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
        soundfile.write(first, whole, 48000, subtype=f"PCM_{bits}")
        audio_files.write(second, audio_files.read(first), bit_depth=bits)
        assert np.array_equal(soundfile.read(second, dtype="int32")[0], whole)


def test_bit_rates_are_kept(tmp_path: Path) -> None:
    from mutagen.mp3 import MP3, BitrateMode

    noise = torch.randn(2, 48000, generator=torch.Generator().manual_seed(1)) / 10
    for rate in (96, 128, 192, 320):
        path = tmp_path / "song.mp3"
        audio_files.write(path, noise, bitrate=rate)
        info = MP3(path).info
        assert (info.bitrate, info.bitrate_mode) == (rate * 1000, BitrateMode.CBR)
    for kind, rate in (("opus", 64), ("opus", 256), ("m4a", 96), ("m4a", 256)):
        path = tmp_path / f"song.{kind}"
        audio_files.write(path, noise, bitrate=rate)
        assert path.stat().st_size * 8 == pytest.approx(rate * 1000, rel=0.25), (kind, rate)


def test_float_files_may_be_louder_than_full_scale(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    loud = torch.tensor([[2.0, -2.0, 0.5]] * 2)
    audio_files.write(path, loud, bit_depth=32)
    assert torch.equal(audio_files.read(path), loud)


@settings(max_examples=20)
@given(
    rate=st.sampled_from([8000, 22050, 44100, 48000, 96000]),
    channels=st.integers(1, 6),
    samples=st.integers(400, 5000),
)
def test_any_rate_and_channels_become_stereo_at_48_khz(
    rate: int, channels: int, samples: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rates") / "x.wav"
    generator = np.random.default_rng(samples)
    soundfile.write(path, generator.uniform(-0.5, 0.5, (samples, channels)), rate)
    audio = audio_files.read(path)
    assert audio.shape[0] == 2
    assert audio.dtype == torch.float32
    assert abs(audio.shape[1] - samples * 48000 / rate) <= 2
    if channels == 1:
        assert torch.equal(audio[0], audio[1])


def test_unreadable_files(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros((0, 2)), 48000)
    broken = tmp_path / "broken.wav"
    soundfile.write(broken, np.array([[0.0, float("nan")]] * 10), 48000, subtype="FLOAT")
    for path, expected in (
        (text, "not readable as audio"),
        (empty, "holds no audio"),
        (broken, "not numbers"),
        (tmp_path / "none.wav", "no such audio file"),
        (tmp_path, "no such audio file"),
    ):
        with pytest.raises(RequestError, match=expected) as caught:
            audio_files.read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_song_of_hours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(3601 * 100, dtype=np.int16), 100)
    with pytest.raises(RequestError, match="longer than 3600 s"):
        audio_files.read(path)


def test_unknown_format(song: torch.Tensor, tmp_path: Path) -> None:
    for name in ("song.wma", "song", "song.flac.txt"):
        with pytest.raises(RequestError, match=r"\.flac, \.wav, \.mp3, \.ogg"):
            audio_files.write(tmp_path / name, song)
    assert list(tmp_path.iterdir()) == []


def test_loud_samples_are_clipped_not_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    audio_files.write(path, torch.tensor([[2.0, -2.0, 0.5]] * 2))
    samples, _ = soundfile.read(path)
    assert samples[0, 0] > 0.99
    assert samples[1, 0] < -0.99
