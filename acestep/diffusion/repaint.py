"""Repainting: which part of a source is made anew, and how the rest is kept.

As ACE-Step 1.5 has done it since April 2026. While the diffusion runs, frames outside the
range are set back to the source at the step's noise level; after it, latents fade over into
the source's; after decoding, the waveform outside is the source's own, sample for sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from acestep.song.request import Request

_LATENT_CROSSFADE = 25
_WAVE_CROSSFADE = 0.05


@dataclass(frozen=True)
class Repaint:
    """What of a song is made anew.

    Attributes:
        start, end: in seconds of the song, which begins where the source, or what is put
            before it, does.
        before: seconds put before the source's start.
        injection: share of the steps after which the rest is set back to the source.
        latent_crossfade: frames over which latents fade into the source's.
        wave_crossfade: seconds over which the waveform does.
        keeps_source: the model goes on to see the source within the range.
    """

    start: float
    end: float
    before: float
    injection: float
    latent_crossfade: int
    wave_crossfade: float
    keeps_source: bool

    @classmethod
    def of(cls, request: Request, seconds: float) -> Repaint | None:
        """The range of a request, or None where it keeps nothing of a source.

        Args:
            seconds: length of the source.
        """
        if request.task not in ("repaint", "lego") or request.src_audio is None:
            return None
        start, end = request.repaint
        end = seconds if end is None else end
        if request.task == "lego" and start <= 0 and end >= seconds:
            return None
        before = max(-start, 0.0)
        share, latent, wave = _strengths(request)
        return cls(
            start + before, end + before, before, share, latent, wave, request.task == "lego"
        )

    def length(self, samples: int, rate: int) -> int:
        """Samples of the song, which may go on where a source of so many ends."""
        return max(round(self.before * rate) + samples, round(self.end * rate))

    def extended(self, audio: torch.Tensor, rate: int) -> torch.Tensor:
        """A source with silence where the range leaves it, `[2, samples]`."""
        before, samples = round(self.before * rate), audio.shape[-1]
        after = self.length(samples, rate) - before - samples
        return torch.nn.functional.pad(audio, (before, after))

    def inside(self, frames: int, rate: float) -> slice:
        """The latent frames of the range."""
        start = min(max(int(self.start * rate), 0), frames - 1)
        return slice(start, min(max(int(self.end * rate), start + 1), frames))

    def covers(self, length: float) -> bool:
        """Whether nothing of a source of a length is left."""
        return self.start <= 0 and self.end >= length

    def injections(self, steps: int) -> int:
        """After how many steps the rest is set back."""
        return round(self.injection * steps)

    def latent_mask(self, frames: int, rate: float) -> torch.Tensor:
        """1 inside, falling to 0 over the crossfade outside: `[frames]`."""
        inside = self.inside(frames, rate)
        return fade(frames, inside.start, inside.stop, self.latent_crossfade)

    def joined(self, made: torch.Tensor, source: torch.Tensor, rate: int) -> torch.Tensor:
        """What was made within the range, the source outside it, sample for sample.

        Args:
            made: `[batch, 2, samples]`.
            source: as it was given, `[2, samples]`.
            rate: samples a second.
        """
        samples = made.shape[-1]
        kept = self.extended(source.to(made), rate)[:, :samples]
        mask = self.wave_mask(samples, rate)
        blended = mask * made + (1 - mask) * kept
        return torch.where(mask > 0, blended, kept)

    def wave_mask(self, samples: int, rate: int) -> torch.Tensor:
        """The same for the waveform, `[samples]`."""
        start, end = round(self.start * rate), round(self.end * rate)
        return fade(samples, start, end, round(self.wave_crossfade * rate))


def fade(length: int, start: int, stop: int, width: int) -> torch.Tensor:
    """1 from start to stop, falling linearly to 0 over a width on both sides."""
    mask = torch.zeros(length)
    mask[max(start, 0) : stop] = 1.0
    if width > 0:
        ramp = torch.linspace(0.0, 1.0, width + 2)[1:-1]
        left = max(start - width, 0)
        if left < start:
            mask[left:start] = ramp[width - (start - left) :]
        right = min(stop + width, length)
        if stop < right:
            mask[stop:right] = ramp.flip(0)[: right - stop]
    return mask


def _strengths(request: Request) -> tuple[float, int, float]:
    """Share of injected steps, latent and waveform crossfade of a mode and its strength."""
    kept = {
        "conservative": 1.0,
        "balanced": 1.0 - request.repaint_strength,
        "aggressive": 0.0,
    }[request.repaint_mode]
    latent, wave = round(_LATENT_CROSSFADE * kept), _WAVE_CROSSFADE * kept
    if request.repaint_latent_crossfade_frames is not None:
        latent = request.repaint_latent_crossfade_frames
    if request.repaint_wav_crossfade_sec is not None:
        wave = request.repaint_wav_crossfade_sec
    return kept, latent, wave
