"""Sound made visible: the peaks of a waveform and a spectrogram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PEAKS = 240
SPECTROGRAM = (960, 192)
"""Width and height in pixels."""

_FFT = 4096
_LOWEST_HZ = 40.0
_FLOOR_DB = -70.0
# Above 1 it darkens what is merely loud, so that the loudest stands out.
_GAMMA = 1.8
# Dark to light with rising lightness, so that it reads in grey too.
_COLOURS = np.array(
    [[12, 12, 32], [52, 28, 92], [122, 40, 110], [196, 66, 84], [244, 130, 62], [252, 236, 176]]
)

Samples = NDArray[np.float32]


def peaks(audio: Samples, count: int = PEAKS) -> list[float]:
    """The loudest sample of each of equal parts.

    Args:
        audio: `[channels, samples]` in -1 to 1.
        count: how many parts.
    """
    loud = np.abs(audio).max(axis=0)
    edges = np.linspace(0, len(loud), count + 1).astype(int)[:-1]
    parts = np.maximum.reduceat(loud, np.minimum(edges, len(loud) - 1))
    return [round(float(peak), 3) for peak in parts]


def spectrogram(audio: Samples, rate: int) -> Image.Image:
    """Loudness over time (across) and pitch (upwards, logarithmic), of both channels mixed.

    Args:
        audio: `[channels, samples]`.
        rate: Hz.
    """
    width, height = SPECTROGRAM
    mono = np.pad(audio.mean(axis=0), _FFT // 2)
    starts = np.linspace(0, max(len(mono) - _FFT, 0), width).astype(int)
    window = np.hanning(_FFT).astype(np.float32)
    if len(mono) < _FFT:
        mono = np.pad(mono, (0, _FFT - len(mono)))
    power = np.empty((width, height), np.float32)
    bins = np.geomspace(_LOWEST_HZ, rate / 2, height + 1) * _FFT / rate
    low = np.minimum(bins[:-1].astype(int), _FFT // 2)
    # A few columns at a time: a long song's frames would not fit into memory together.
    for first in range(0, width, 64):
        frames = np.stack([mono[s : s + _FFT] for s in starts[first : first + 64]])
        size = np.abs(np.fft.rfft(frames * window, axis=1))
        power[first : first + 64] = np.maximum.reduceat(size, low, axis=1)
    level = 20 * np.log10(power / max(float(power.max()), 1e-9) + 1e-9)
    shade = np.clip(1 - level / _FLOOR_DB, 0, 1).T[::-1] ** _GAMMA
    return Image.fromarray(_coloured(shade))


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture with a palette: a third of the size, and no visible loss."""
    image.quantize(128).save(path, format="PNG", optimize=True)


def _coloured(shade: NDArray[Any]) -> NDArray[np.uint8]:
    at, stops = shade * (len(_COLOURS) - 1), np.arange(len(_COLOURS))
    channels = [np.interp(at, stops, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)
