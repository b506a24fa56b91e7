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


@pytest.mark.parametrize("kind", sorted(audio_files.FORMATS))
def test_round_trip(kind: str, song: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "deep" / f"song.{kind}"
    audio_files.write(path, song)
    assert soundfile.info(path).samplerate == 48000
    again = audio_files.read(path)
    length = min(song.shape[-1], again.shape[-1])
    middle = slice(4800, length - 4800)
    error = (again[:, middle] - song[:, middle]).abs().max()
    assert error < {"flac": 1e-6, "wav": 1e-4}.get(kind, 0.1)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


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
    for name in ("song.aac", "song", "song.flac.txt"):
        with pytest.raises(RequestError, match=r"\.flac, \.wav, \.mp3, \.ogg"):
            audio_files.write(tmp_path / name, song)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "song.txt"
    path.write_text("old")
    with (
        pytest.raises(RequestError, match=r"cannot write .*song\.txt"),
        audio_files.replacing(path),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), audio_files.replacing(path) as part:
        part.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["song.txt"]
    with audio_files.replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~audio_files._umask()


def test_loud_samples_are_clipped_not_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    audio_files.write(path, torch.tensor([[2.0, -2.0, 0.5]] * 2))
    samples, _ = soundfile.read(path)
    assert samples[0, 0] > 0.99
    assert samples[1, 0] < -0.99
