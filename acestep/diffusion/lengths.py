"""How long a song is: in latent frames, in samples, and in the words of its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from acestep.diffusion.repaint import Repaint
from acestep.engines.protocol import Traits
from acestep.song.request import DEFAULT_DURATION, Request

CODES_ALONE = 30.0
"""Seconds that the prompt says where codes are given and no duration, as the original does."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the songs of one request.

    Attributes:
        frames: latent frames that the request asks for; the model may make more.
        samples: of the audio that is handed out.
        said: seconds in the prompt, of which the whole ones are written.
    """

    frames: int
    samples: int
    said: float

    @classmethod
    def of(
        cls, request: Request, traits: Traits, sources: Sequence[int], repaint: Repaint | None
    ) -> Lengths:
        """The lengths of a request.

        Args:
            traits: of the checkpoint.
            sources: latent frames of the source, or of each song's codes; empty without.
            repaint: the part of the source that is made anew.
        """
        duration, rate = request.duration, traits.sample_rate
        coded = bool(request.audio_codes or request.song_codes)
        if request.src_audio is not None and not coded:
            given = int(request.src_audio.shape[-1])
            samples = given if repaint is None else repaint.length(given, rate)
            return cls(max(sources), samples, given / rate)
        if coded:
            frames = max(sources)
            most = frames * traits.frame_samples
            samples = most if duration is None else min(round(duration * rate), most)
            return cls(frames, samples, CODES_ALONE if duration is None else duration)
        seconds = DEFAULT_DURATION if duration is None else duration
        return cls(frames_of(seconds, traits.frame_rate), round(seconds * rate), seconds)


def frames_of(seconds: float, rate: float) -> int:
    """Latent frames of a song: its length is rounded to 0.1 s, as the original does."""
    return max(math.floor(round(seconds, 1) * rate + 1e-6), 1)
