"""How loud a song is, as ITU-R BS.1770-5 measures it, and making it as loud as was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
import torch

from acestep.errors import RequestError
from acestep.song.request import REPAINT_TASKS, Request

if TYPE_CHECKING:
    from acestep.song.outcome import Generation, Song

RANGE = (-40.0, -5.0)
"""Targets that can be asked for, LUFS."""
CEILING = 10 ** (-1 / 20)
"""Highest true peak of a song that was made as loud as asked: -1 dBTP."""

_RATE = 48000
# The two filters of K-weighting at 48 kHz, numerator and denominator: BS.1770-5, annex 1.
_FILTERS = (
    ((1.53512485958697, -2.69169618940638, 1.19839281085285),
     (1.0, -1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
)  # fmt: skip
# After so many samples their response is below 1e-17.
_RESPONSE = 8192
_CHUNK = 2**17
_HOP = 4800
_ABSOLUTE, _RELATIVE = -70.0, -10.0
_OVERSAMPLED = 4 * _RATE
# Seconds over which the loudness of what was made anew joins that of the rest.
_JOIN = 0.05
# LU; less is not heard.
_SLACK = 0.1


def check(target: float | None) -> None:
    """Refuse a loudness that cannot be asked for.

    Raises:
        RequestError: it is outside `RANGE`.
    """
    if target is not None and not RANGE[0] <= target <= RANGE[1]:
        raise RequestError(
            f"loudness {target:g} is out of range; expected {RANGE[0]:g} to {RANGE[1]:g} LUFS"
        )


def measured(audio: torch.Tensor, sample_rate: int = _RATE) -> float:
    """Integrated loudness, LUFS; minus infinity of silence and of less than 0.4 s.

    Args:
        audio: `[1 or 2, samples]` on the host.
        sample_rate: Hz.
    """
    sound = np.asarray(audio.numpy(), np.float32)
    if sample_rate != _RATE:
        sound = np.ascontiguousarray(soxr.resample(sound.T, sample_rate, _RATE).T)
    energy = sum((_energy(channel) for channel in sound), np.zeros(sound.shape[1] // _HOP))
    # Blocks of 0.4 s that begin every 0.1 s.
    blocks = np.convolve(energy, np.full(4, 0.25), "valid") if len(energy) >= 4 else np.zeros(0)
    blocks = blocks[blocks > _power(_ABSOLUTE)]
    if not len(blocks):
        return -math.inf
    loud = blocks[blocks > blocks.mean() * 10 ** (_RELATIVE / 10)]
    return -0.691 + 10 * math.log10(loud.mean())


def true_peak(audio: torch.Tensor, sample_rate: int = _RATE) -> float:
    """The highest level between samples too, 1 being full scale, by oversampling four times."""
    stream = soxr.ResampleStream(sample_rate, _OVERSAMPLED, audio.shape[0], dtype="float32")
    peak = float(audio.abs().max())
    for part in _parts(np.ascontiguousarray(audio.T.numpy()), _CHUNK):
        over = stream.resample_chunk(np.ascontiguousarray(part))
        peak = max(peak, float(np.abs(over).max(initial=0.0)))
    rest = stream.resample_chunk(np.zeros((0, audio.shape[0]), np.float32), last=True)
    return max(peak, float(np.abs(rest).max(initial=0.0)))


def brought_to(audio: torch.Tensor, target: float, sample_rate: int = _RATE) -> torch.Tensor:
    """A song scaled to a loudness, or as near to it as its peaks allow; nothing is compressed.

    Args:
        audio: `[channels, samples]` on the host.
        target: LUFS.
        sample_rate: Hz.
    """
    now = measured(audio, sample_rate)
    if not math.isfinite(now):
        return audio
    gain = min(10 ** ((target - now) / 20), CEILING / true_peak(audio, sample_rate))
    return audio * gain


def songs_brought_to(made: Generation, target: float | None) -> Generation:
    """The songs of a generation brought to a loudness, as far as it can be had.

    Where it cannot, a warning says what they have. Of a repaint only what was made anew is
    brought to it: the rest is the source's, in its level too. Without a target nothing is done.
    """
    if target is None:
        return made
    songs, warnings = [], list(made.warnings)
    for song in made.songs:
        made_here = _made_here(made.request, song)
        louder, reached = _song_brought_to(song, target, made_here)
        if made_here != slice(0, song.audio.shape[-1]):
            warnings.append(
                f"the loudness is that of what was made anew, "
                f"{made_here.start / song.sample_rate:g} to {made_here.stop / song.sample_rate:g} "
                "s; the rest keeps the level of the source"
            )
        songs.append(louder)
        if reached is None:
            warnings.append(
                f"the song of seed {song.seed} is too short or too quiet to have a loudness, and "
                "is left as it is"
            )
        elif abs(reached - target) > _SLACK:
            warnings.append(
                f"the song of seed {song.seed} has {reached:.1f} LUFS, not {target:g}: its peaks "
                "allow no more"
            )
    return replace(made, songs=songs, warnings=warnings)


def _made_here(request: Request, song: Song) -> slice:
    """The samples of a song that are not its source's."""
    samples = song.audio.shape[-1]
    if request.task not in REPAINT_TASKS or request.src_audio is None:
        return slice(0, samples)
    start, end = request.repainted
    before = min(start, 0.0)
    bounds = (round((second - before) * song.sample_rate) for second in (start, end))
    return slice(*(min(max(bound, 0), samples) for bound in bounds))


def _song_brought_to(song: Song, target: float, part: slice) -> tuple[Song, float | None]:
    audio, rate = song.audio, song.sample_rate
    louder = brought_to(audio[:, part], target, rate)
    reached = measured(louder, rate)
    if part != slice(0, audio.shape[-1]):
        # Nothing jumps where it joins the rest.
        ramp = torch.ones(part.stop - part.start)
        rise = torch.linspace(0, 1, min(round(_JOIN * rate), len(ramp) // 2))
        if part.start > 0:
            ramp[: len(rise)] = rise
        if part.stop < audio.shape[-1]:
            ramp[len(ramp) - len(rise) :] = rise.flip(0)
        whole = audio.clone()
        whole[:, part] = torch.lerp(audio[:, part], louder, ramp)
        audio = whole
    else:
        audio = louder
    # Files of records hold no infinity.
    told = round(reached, 2) if math.isfinite(reached) else None
    return replace(song, audio=audio, loudness=(target, told)), told


def _energy(channel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean square of a K-weighted channel in each whole tenth of a second."""
    size = len(channel) // _HOP * _HOP
    weighted = np.empty(size)
    spectrum = _spectrum()
    step = _CHUNK - _RESPONSE
    padded = np.concatenate([np.zeros(_RESPONSE, np.float32), channel])
    for start in range(0, size, step):
        part = padded[start : start + _CHUNK]
        filtered = np.fft.irfft(np.fft.rfft(part, _CHUNK) * spectrum, _CHUNK)
        stop = min(start + step, size)
        weighted[start:stop] = filtered[_RESPONSE : _RESPONSE + stop - start]
    energy: np.ndarray[Any, Any] = np.square(weighted).reshape(-1, _HOP).mean(axis=1)
    return energy


@cache
def _spectrum() -> np.ndarray[Any, Any]:
    """What K-weighting does to each frequency of a chunk."""
    z = np.exp(-2j * np.pi * np.arange(_CHUNK // 2 + 1) / _CHUNK)
    response: np.ndarray[Any, Any] = np.ones_like(z)
    for above, below in _FILTERS:
        response = response * (np.polyval(above[::-1], z) / np.polyval(below[::-1], z))
    return response


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _parts(sound: np.ndarray[Any, Any], size: int) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, len(sound), size):
        yield sound[start : start + size]
