"""How loud a song is."""

from __future__ import annotations

import torch

from acestep.errors import GenerationError

PEAK = 10 ** (-1 / 20)
"""Songs are scaled to a peak of -1 dBFS, as diffusers' pipeline does."""


def normalized(audio: torch.Tensor) -> torch.Tensor:
    """Each song of `[batch, 2, samples]` scaled to a peak of -1 dBFS; what is given is spent.

    Raises:
        GenerationError: the audio is not finite, or silent.
    """
    peak = checked_peak(audio)
    # First back within full scale, then to the target, as diffusers does: the same rounding.
    if (peak > 1).any():
        audio.div_(peak.clamp(min=1.0))
        peak = _peak(audio)
    # A copy: what a device writes to is memory that the system cannot move.
    return audio * (PEAK / peak.clamp(min=1e-6))


def checked_peak(audio: torch.Tensor) -> torch.Tensor:
    """The greatest absolute sample of each item of `[batch, 2, samples]`, `[batch, 1, 1]`.

    Raises:
        GenerationError: the audio is not finite, or silent.
    """
    peak = _peak(audio)
    if not torch.isfinite(peak).all():
        raise GenerationError("the VAE gave audio that is not finite; try --dtype float32")
    if not peak.all():
        raise GenerationError("the VAE gave silence; the checkpoint may be damaged")
    return peak


def _peak(audio: torch.Tensor) -> torch.Tensor:
    """The greatest absolute sample of each item, `[batch, 1, 1]`, without a copy of the audio."""
    # An item at a time: only the extremes of a whole tensor are looked for by all threads.
    extremes = torch.stack([torch.stack(item.aminmax()) for item in audio])
    return extremes.abs().amax(dim=1)[:, None, None]
