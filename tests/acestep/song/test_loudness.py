"""Tests of loudness against the signals of EBU Tech 3341, whose loudness is known."""

from __future__ import annotations

import math

import pytest
import torch

from acestep.errors import RequestError
from acestep.song import loudness
from acestep.song.outcome import Generation, Song
from acestep.song.request import Request

RATE = 48000


def sine(
    level: float, seconds: float, frequency: float = 1000.0, channels: int = 2
) -> torch.Tensor:
    time = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    wave = 10 ** (level / 20) * torch.sin(2 * math.pi * frequency * time)
    return wave.float().repeat(channels, 1)


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (sine(-23, 20), -23.0),
        (sine(-33, 20), -33.0),
        # One channel of a full-scale sine of 997 Hz: BS.1770's own example.
        (sine(0, 5, 997, 1), -3.01),
        (torch.cat([sine(-36, 10), sine(-23, 60), sine(-36, 10)], 1), -23.0),
        (torch.cat([sine(-72, 10), sine(-36, 10), sine(-23, 60), sine(-36, 10)], 1), -23.0),
        (torch.cat([sine(-26, 20), sine(-20, 20.1), sine(-26, 20)], 1), -23.0),
        (sine(-30, 10, 100), -32.0),
    ],
    ids=range(7),
)  # fmt: skip
def test_known_signals(audio: torch.Tensor, expected: float) -> None:
    assert loudness.measured(audio) == pytest.approx(expected, abs=0.1 if expected != -32 else 0.8)


def test_a_rate_of_its_own_and_silence() -> None:
    slow = sine(-23, 5)[:, ::2].contiguous()
    assert loudness.measured(slow, RATE // 2) == pytest.approx(-23, abs=0.1)
    assert loudness.measured(torch.zeros(2, RATE)) == -math.inf
    assert loudness.measured(torch.ones(2, 100)) == -math.inf
    quiet = torch.zeros(2, RATE)
    assert loudness.brought_to(quiet, -14) is quiet


def test_peaks_between_samples() -> None:
    """A sine of a quarter of the rate, sampled 45 degrees off its tops."""
    steps = torch.arange(RATE)
    audio = 0.5 * torch.sin(math.pi / 2 * steps + math.pi / 4).repeat(2, 1)
    audio *= torch.hann_window(RATE)
    assert audio.abs().max() == pytest.approx(0.354, abs=0.001)
    assert loudness.true_peak(audio) == pytest.approx(0.5, abs=0.01)


def test_brought_to_a_loudness() -> None:
    audio = torch.randn(2, 5 * RATE, generator=torch.Generator().manual_seed(0)) / 20
    made = loudness.brought_to(audio, -24)
    assert loudness.measured(made) == pytest.approx(-24, abs=0.01)
    loud = loudness.brought_to(audio, -5)
    assert loudness.true_peak(loud) == pytest.approx(loudness.CEILING, abs=1e-3)
    assert loudness.measured(loud) < -6


@pytest.mark.parametrize("target", [-41, 0, math.nan])
def test_what_cannot_be_asked_for(target: float) -> None:
    with pytest.raises(RequestError, match="expected -40 to -5 LUFS"):
        loudness.check(target)


def test_what_has_no_loudness_is_left_and_said() -> None:
    """Records are JSON, which knows no infinity."""
    songs = [
        Song(torch.full((2, 100), 0.5), RATE, seed=1),
        Song(sine(-20, 1), RATE, seed=2),
    ]
    made = Generation(songs, Request(caption="x", seeds=(1, 2)), ["before"], {}, 1.0, [], {}, 0.0)
    assert loudness.songs_brought_to(made, None) is made
    done = loudness.songs_brought_to(made, -23)
    short, usual = done.songs
    assert short.loudness == (-23, None)
    assert torch.equal(short.audio, songs[0].audio)
    assert usual.loudness == (-23, -23.0)
    assert done.warnings[0] == "before"
    assert len(done.warnings) == 2
    assert "seed 1 is too short or too quiet" in done.warnings[1]


@pytest.mark.parametrize(
    ("repaint", "seconds", "kept"),
    [
        ((1.0, 3.0), 4, [(0, 1), (3, 4)]),
        ((2.0, 6.0), 6, [(0, 2)]),
        ((-1.0, 1.0), 5, [(2, 5)]),
        ((0.0, None), 4, []),
    ],
)
def test_of_a_repaint_only_what_was_made_is_brought_to_it(
    repaint: tuple[float, float | None], seconds: int, kept: list[tuple[int, int]]
) -> None:
    source = sine(-30, 4)
    song = torch.cat([source, source], dim=-1)[:, : seconds * RATE]
    request = Request("x", (1,), task="repaint", src_audio=source, repaint=repaint)
    made = Generation([Song(song, RATE, seed=1)], request, [], {}, 1.0, [], {}, 0.0)
    done = loudness.songs_brought_to(made, -20)
    (louder,) = done.songs
    for start, stop in kept:
        part = slice(start * RATE, stop * RATE)
        assert torch.equal(louder.audio[:, part], song[:, part])
    start, end = request.repainted
    before = min(start, 0.0)
    part = louder.audio[:, round((start - before) * RATE) : round((end - before) * RATE)]
    assert loudness.measured(part) == pytest.approx(-20, abs=0.3)
    step = (louder.audio[:, 1:] - louder.audio[:, :-1]).abs().max()
    assert step < 3.5 * (song[:, 1:] - song[:, :-1]).abs().max(), "nothing clicks where they join"
    assert bool(kept) == any("keeps the level of the source" in line for line in done.warnings)
