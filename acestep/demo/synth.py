"""Sounds the notes of a piece: additive, FM and plucked voices, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from acestep.demo.music import CHORDS, HATS, LEAD, MIDDLE, PATCHES, Song

SAMPLE_RATE = 48000
LONGEST = 4.0
"""Seconds of the longest note."""

_GAIN = 0.707
_WIDTHS = {LEAD: -0.5, CHORDS: 0.5, MIDDLE: 0.0, HATS: -0.6}
"""How far to the left each place stands, from -1 to 1.

Always the same, and the sum of both channels does not depend on it: the VAE's encoder hears
that sum only, and its decoder learns where things stand (`autoencoder.hear_the_middle`).
"""
FADE = 0.008
"""Seconds in which a piece rises from silence; drums on its first sample would be a click."""
# Seconds in which a note falls by a factor e after it is let go.
_RELEASE = {"strings": 0.1, "bells": 0.4, "piano": 0.06, "flute": 0.05}
_BLOCK = 2**25


class Voices:
    """Renders notes once and adds them up into songs.

    Args:
        device: where; the sound is the same everywhere up to rounding.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._slots: dict[tuple[int, int], int] = {}
        self._table = torch.empty(0, int(LONGEST * SAMPLE_RATE), device=self.device)

    def render(self, songs: Sequence[Song]) -> torch.Tensor:
        """The songs as audio `[len(songs), 2, samples]` at 48 kHz; all of one length.

        Peaks stay below full scale: each song is scaled down to a peak of 0.9 if needed. It
        rises from silence in `FADE` seconds.
        """
        samples = round(songs[0].seconds * SAMPLE_RATE)
        places = torch.zeros(len(songs) * 4 * samples, device=self.device)
        rows = np.concatenate(
            [np.column_stack([np.full(len(s.notes), i), s.notes]) for i, s in enumerate(songs)]
        )
        slots = self._prepare(rows)
        releases = np.array([_RELEASE.get(name, 0.04) for name in PATCHES])[rows[:, 1].astype(int)]
        lengths = np.minimum(rows[:, 4] + 4 * releases, LONGEST) * SAMPLE_RATE
        order = np.argsort(lengths)
        first = 0
        while first < len(order):
            # Notes of about the same length share a rectangle of samples.
            last = first + max(1, int(_BLOCK / (lengths[order[first]] * 1.25 + 4800)))
            last = min(last, len(order))
            limit = lengths[order[first]] * 1.25 + 4800
            last = max(first + 1, int(np.searchsorted(lengths[order[:last]], limit, "right")))
            chosen = order[first:last]
            self._add(places, samples, rows[chosen], slots[chosen], releases[chosen])
            first = last
        return _mixed(places.view(len(songs), 4, samples))

    def _add(
        self,
        places: torch.Tensor,
        samples: int,
        rows: np.ndarray,
        slots: np.ndarray,
        releases: np.ndarray,
    ) -> None:
        """Add notes of similar length to the flat buffer of all songs and places."""
        length = int(min(LONGEST, (rows[:, 4] + 4 * releases).max()) * SAMPLE_RATE)

        def column(values: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.as_tensor(values, dtype=dtype, device=self.device)[:, None]

        index = torch.arange(length, device=self.device)
        held = column(rows[:, 4] * SAMPLE_RATE)
        fall = torch.exp(-(index - held).clamp(min=0) / column(releases * SAMPLE_RATE))
        waves = self._table[column(slots, torch.long)[:, 0], :length]
        waves = waves * fall.mul_(column(rows[:, 5]))
        start = column(np.round(rows[:, 3] * SAMPLE_RATE), torch.long)
        base = column((rows[:, 0] * 4 + rows[:, 6]) * samples, torch.long)
        at = start + index
        # A note ends with its own tail, whatever longer notes share its rectangle.
        tail = column(np.minimum(rows[:, 4] + 4 * releases, LONGEST) * SAMPLE_RATE)
        waves = waves.masked_fill_((at >= samples) | (index >= tail), 0.0)
        places.index_add_(0, (base + at.clamp_(max=samples - 1)).flatten(), waves.flatten())

    def _prepare(self, rows: np.ndarray) -> np.ndarray:
        """The table's row of each note; notes not heard before are rendered."""
        wanted = [(int(patch), int(pitch)) for patch, pitch in rows[:, 1:3]]
        missing = sorted(set(wanted) - self._slots.keys())
        new = []
        for patch in sorted({patch for patch, _ in missing}):
            pitches = [pitch for p, pitch in missing if p == patch]
            for pitch in pitches:
                self._slots[patch, pitch] = len(self._slots)
            new.append(voice(PATCHES[patch], pitches, self.device))
        if new:
            self._table = torch.cat([self._table, *new])
        return np.array([self._slots[pair] for pair in wanted])


def voice(patch: str, pitches: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Notes of one patch, `[pitches, samples]`, `LONGEST` seconds each, of equal loudness."""
    time = torch.arange(int(LONGEST * SAMPLE_RATE), device=device) / SAMPLE_RATE
    midi = torch.tensor(pitches, dtype=torch.float64)
    frequency = (440 * 2 ** ((midi - 69) / 12)).float().to(device)[:, None]
    wave = _PATCHES[patch](frequency, time)
    # By what is heard of a note of ordinary length.
    loudness = wave[:, : SAMPLE_RATE // 2].square().mean(1, keepdim=True).sqrt()
    return 0.12 * wave / loudness


def _mixed(places: torch.Tensor) -> torch.Tensor:
    widths = [_WIDTHS[place] for place in range(4)]
    gains = _GAIN * torch.tensor([[1 + w, 1 - w] for w in widths], device=places.device)
    audio = torch.einsum("bps,pc->bcs", places, gains)
    rise = torch.arange(int(FADE * SAMPLE_RATE), device=places.device) / (FADE * SAMPLE_RATE)
    audio[..., : len(rise)] *= (0.5 - 0.5 * torch.cos(math.pi * rise))[: audio.shape[-1]]
    peak = audio.abs().amax(dim=(1, 2), keepdim=True)
    return audio * (0.9 / peak.clamp(min=0.9))


def _partials(
    frequency: torch.Tensor,
    time: torch.Tensor,
    strengths: Sequence[float],
    decays: Sequence[float],
    ratios: Sequence[float] | None = None,
) -> torch.Tensor:
    """A sum of decaying sines; decays are per second, ratios those of the frequencies."""
    wave = torch.zeros(len(frequency), len(time), device=time.device)
    for number, strength in enumerate(strengths):
        ratio = ratios[number] if ratios else number + 1
        audible = frequency * ratio < 0.42 * SAMPLE_RATE
        angle = 2 * math.pi * (frequency * ratio * time % 1.0) + number * 2.4
        wave += strength * audible * torch.exp(-decays[number] * time) * torch.sin(angle)
    return wave


def _attack(time: torch.Tensor, seconds: float) -> torch.Tensor:
    return (time / seconds).clamp(max=1.0)


def _fm(
    frequency: torch.Tensor, time: torch.Tensor, ratio: float, index: torch.Tensor
) -> torch.Tensor:
    """A sine whose phase another one moves."""
    modulator = torch.sin(2 * math.pi * (frequency * ratio * time % 1.0))
    brightness = (0.3 * SAMPLE_RATE / (frequency * ratio) - 1).clamp(0, 1)
    return torch.sin(2 * math.pi * (frequency * time % 1.0) + brightness * index * modulator)


def _noise(time: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(time), generator=generator).to(time.device)


def _piano(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    count = 14
    strengths = [k**-1.15 * (1 + 0.5 * math.cos(k * 0.9)) for k in range(1, count + 1)]
    ratios = [k * math.sqrt(1 + 4e-4 * k * k) for k in range(1, count + 1)]
    decays = [0.9 + 0.35 * k for k in range(count)]
    return _attack(t, 0.004) * _partials(f, t, strengths, decays, ratios)


def _guitar(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    # A string plucked at a fifth of its length; each partial rings the shorter the higher.
    strengths = [abs(math.sin(math.pi * k / 5.3)) / k for k in range(1, 21)]
    return _attack(t, 0.002) * _partials(f, t, strengths, [1.6 + 0.28 * k**1.25 for k in range(20)])


def _organ(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    strengths = [1.0, 0.9, 0.6, 0.55, 0.35, 0.3]
    ratios = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0]
    shake = 1 + 0.12 * torch.sin(2 * math.pi * 6.4 * t)
    return _attack(t, 0.015) * shake * _partials(f, t, strengths, [0.0] * 6, ratios)


def _strings(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    strengths = [k**-0.85 for k in range(1, 19)]
    return _attack(t, 0.12) * _partials(f, t, strengths, [0.0] * 18)


def _flute(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    breath = _noise(t, 5)
    breath = (breath + breath.roll(1) + breath.roll(2) + breath.roll(3)) / 4
    return _attack(t, 0.05) * (_partials(f, t, [1.0, 0.22, 0.06], [0.0] * 3) + 0.03 * breath)


def _trumpet(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    swell = _attack(t, 0.06) * (0.75 + 0.25 * torch.exp(-t / 0.2))
    return swell * _fm(f, t, 1.0, 3.6 * swell)


def _bells(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    ring = _partials(f, t, [1, 0.5, 0.35, 0.2], [1.4, 2.2, 3.5, 6.0], [1.0, 2.76, 4.07, 5.4])
    return _attack(t, 0.002) * ring


def _marimba(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    wood = _partials(f, t, [1.0, 0.35, 0.12], [7.0, 16.0, 40.0], [1.0, 3.95, 9.4])
    return _attack(t, 0.002) * wood


def _electric_piano(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    body = _fm(f, t, 1.0, 1.1 * torch.exp(-1.5 * t))
    tine = _fm(f, t, 14.0, 0.35 * torch.exp(-9 * t))
    return _attack(t, 0.004) * torch.exp(-1.1 * t) * (body + 0.6 * tine)


def _synth_lead(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    strengths = [1 / k if k % 2 else 0.0 for k in range(1, 24)]
    return _attack(t, 0.006) * _partials(f, t, strengths, [0.0] * 23)


def _vibraphone(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    # Its motor opens and closes the resonators five times a second.
    motor = 1 + 0.25 * torch.sin(2 * math.pi * 5 * t)
    bars = _partials(f, t, [1.0, 0.3, 0.05], [1.6, 4.0, 12.0], [1.0, 4.0, 10.0])
    return _attack(t, 0.002) * motor * bars


def _bass(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    strengths = [k**-1.3 for k in range(1, 9)]
    return _attack(t, 0.006) * _partials(f, t, strengths, [0.9 + 0.5 * k for k in range(8)])


def _kick(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    phase = 47 * t - 90 / 28 * torch.exp(-28 * t)
    wave = torch.exp(-9 * t) * torch.sin(2 * math.pi * phase)
    return wave.expand(len(f), -1)


def _snare(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    rattle = _noise(t, 7) * torch.exp(-22 * t)
    body = torch.exp(-28 * t) * torch.sin(2 * math.pi * 185 * t)
    return (0.5 * rattle + 0.6 * body).expand(len(f), -1)


def _hat(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    noise = _noise(t, 9)
    bright = noise - noise.roll(1)
    return (torch.exp(-60 * t) * bright).expand(len(f), -1)


_PATCHES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "piano": _piano,
    "guitar": _guitar,
    "organ": _organ,
    "strings": _strings,
    "flute": _flute,
    "trumpet": _trumpet,
    "bells": _bells,
    "marimba": _marimba,
    "electric piano": _electric_piano,
    "synth lead": _synth_lead,
    "vibraphone": _vibraphone,
    "bass": _bass,
    "kick": _kick,
    "snare": _snare,
    "hat": _hat,
}
