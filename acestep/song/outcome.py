"""What comes of a request: songs, and what is known of how they came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from acestep.song.request import Request


@dataclass(frozen=True)
class Song:
    """One finished song: `[2, samples]` float32 on the host, and the seed it came from.

    `loudness` is what was asked for and what it is, LUFS, where it was asked for; None of a song
    that is too short or too quiet to have one.
    """

    audio: torch.Tensor
    sample_rate: int
    seed: int
    loudness: tuple[float, float | None] | None = None

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.audio.shape[-1] / self.sample_rate


@dataclass(frozen=True)
class Generation:
    """The songs of one request, and what is known of how they came about.

    Attributes:
        songs: one for each seed.
        request: the request as it was served, after limits and planning.
        warnings: what was changed to stay within limits, a line each.
        tensors: float32 on the host: `pred_latents` `[batch, frames, channels]`, and the
            transformer's `encoder_hidden_states` and `context_latents`.
        latent_seconds: length of the latents, which may go on where the song was cut.
        lyric_token_ids: the lyrics as the text encoder saw them, header included.
        times: seconds spent in each stage.
        peak_memory: GiB, see `DevicePolicy.peak_memory`.
        asked: the request as it came, where something may have been done to it.
    """

    songs: list[Song]
    request: Request
    warnings: list[str]
    tensors: dict[str, torch.Tensor] = field(repr=False)
    latent_seconds: float
    lyric_token_ids: list[int] = field(repr=False)
    times: dict[str, float]
    peak_memory: float
    asked: Request | None = field(default=None, repr=False)


def extra_outputs(made: Generation) -> dict[str, Any]:
    """What a generation leaves for later steps such as lyric alignment."""
    return {
        **made.tensors,
        # What this package called them first.
        "latents": made.tensors["pred_latents"],
        "latent_duration": made.latent_seconds,
        "lyric_token_ids": made.lyric_token_ids,
        "seeds": list(made.request.seeds),
        "duration": made.songs[0].seconds,
        "steps": len(made.request.timesteps or ()) or made.request.steps,
        "language": made.request.language,
        "time_costs": made.times,
        "peak_memory_gib": made.peak_memory,
        "warnings": made.warnings,
    }
