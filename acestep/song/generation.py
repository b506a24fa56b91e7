"""The stages of one generation: arguments, checks, timing, and what comes out."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from acestep.device import DevicePolicy
from acestep.diffusion.pipeline import Pipeline
from acestep.errors import CancelledError, GenerationError, first_line
from acestep.song.request import CODES_PER_SECOND, DEFAULT_DURATION, Request, count_audio_codes

Progress = Callable[..., Any]
"""Called as `progress(fraction, desc=text)` with 0 <= fraction <= 1."""

PEAK = 10 ** (-1 / 20)
"""Songs are scaled to a peak of -1 dBFS, as diffusers' pipeline does."""


@dataclass(frozen=True)
class Song:
    """One finished song: `[2, samples]` float32 on the host, and the seed it came from.

    `loudness` is what was asked for and what it is, LUFS, where it was asked for.
    """

    audio: torch.Tensor
    sample_rate: int
    seed: int
    loudness: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.audio.shape[-1] / self.sample_rate


@dataclass(frozen=True)
class Generation:
    """The songs of one request, and what is known of how they came about.

    Attributes:
        songs: one for each seed.
        request: the request as it was served, after limits.
        warnings: what was changed to stay within limits, a line each.
        tensors: float32 on the host: `latents` `[batch, frames, channels]`, and the
            transformer's `encoder_hidden_states` and `context_latents`.
        lyric_token_ids: the lyrics as the text encoder saw them, header included.
        times: seconds spent in each stage.
        peak_memory: GiB, see `DevicePolicy.peak_memory`.
    """

    songs: list[Song]
    request: Request
    warnings: list[str]
    tensors: dict[str, torch.Tensor] = field(repr=False)
    lyric_token_ids: list[int] = field(repr=False)
    times: dict[str, float]
    peak_memory: float


def check_latents(latents: torch.Tensor, policy: DevicePolicy) -> None:
    """Refuse latents that would become noise or silence.

    Raises:
        GenerationError: a value is NaN or infinite, or a whole item is zero.
    """
    peak = latents.abs().amax(dim=(1, 2)).float().cpu()
    if not torch.isfinite(peak).all():
        half = policy.dtype == torch.float16
        cause = (
            "float16 overflows in this model; use --dtype bfloat16 or float32"
            if half
            else "the checkpoint may be damaged, or a kernel is wrong; try --dtype float32"
        )
        raise GenerationError(
            f"the diffusion gave NaN or infinite latents on {policy.name}: {cause}"
        )
    if not peak.all():
        raise GenerationError(
            f"the diffusion gave all-zero latents on {policy.name}: the checkpoint's weights may "
            "be empty; fetch it again"
        )


def normalized(audio: torch.Tensor) -> torch.Tensor:
    """Each song of `[batch, 2, samples]` scaled to a peak of -1 dBFS; what is given is spent.

    Raises:
        GenerationError: the audio is not finite, or silent.
    """
    peak = _peak(audio)
    if not torch.isfinite(peak).all():
        raise GenerationError("the VAE gave audio that is not finite; try --dtype float32")
    if not peak.all():
        raise GenerationError("the VAE gave silence; the checkpoint may be damaged")
    # First back within full scale, then to the target, as diffusers does: the same rounding.
    if (peak > 1).any():
        audio.div_(peak.clamp(min=1.0))
        peak = _peak(audio)
    # A copy: what a device writes to is memory that the system cannot move.
    return audio * (PEAK / peak.clamp(min=1e-6))


def _peak(audio: torch.Tensor) -> torch.Tensor:
    """The greatest absolute sample of each item, `[batch, 1, 1]`, without a copy of the audio."""
    # An item at a time: only the extremes of a whole tensor are looked for by all threads.
    extremes = torch.stack([torch.stack(item.aminmax()) for item in audio])
    return extremes.abs().amax(dim=1)[:, None, None]


def extra_outputs(made: Generation) -> dict[str, Any]:
    """What a generation leaves for later steps such as lyric alignment."""
    return {
        **made.tensors,
        "lyric_token_ids": made.lyric_token_ids,
        "seeds": list(made.request.seeds),
        "duration": made.songs[0].seconds,
        "steps": made.request.steps,
        "language": made.request.language,
        "time_costs": made.times,
        "peak_memory_gib": made.peak_memory,
        "warnings": made.warnings,
    }


class Report:
    """Passes progress on, and stops the work where the caller asked for it."""

    def __init__(self, progress: Progress | None, cancel: threading.Event) -> None:
        self._progress, self._cancel = progress, cancel

    def __call__(self, fraction: float, text: str) -> None:
        if self._cancel.is_set():
            raise CancelledError("cancelled")
        if self._progress is not None:
            self._progress(fraction, desc=text)

    def part(self, low: float, high: float, done: float, text: str) -> None:
        self(low + (high - low) * done, text)


class Clock:
    """Seconds spent in named stages, with the device's work finished at their ends."""

    def __init__(self, policy: DevicePolicy) -> None:
        self._policy = policy
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._policy.synchronize()
        self.seconds[stage] = time.perf_counter() - start


def pipeline_arguments(pipeline: Pipeline, request: Request) -> dict[str, Any]:
    """The request in the words of `AceStepPipeline.__call__`."""
    batch = request.batch_size
    start, end = request.repaint
    return {
        "prompt": [request.caption] * batch,
        "lyrics": [request.lyrics] * batch,
        "vocal_language": [request.language] * batch,
        "num_inference_steps": request.steps,
        # Turbo checkpoints have guidance in their weights.
        "guidance_scale": 1.0 if pipeline.is_turbo else request.guidance_scale,
        "shift": request.shift,
        "instruction": request.instruction,
        "bpm": request.bpm,
        "keyscale": request.key,
        "timesignature": request.time_signature,
        "task_type": request.task,
        "track_name": request.track_name,
        "complete_track_classes": list(request.track_classes) or None,
        "src_audio": request.src_audio,
        "reference_audio": request.reference_audio,
        "audio_codes": list(request.song_codes) or request.audio_codes or None,
        "repainting_start": start,
        "repainting_end": end,
        "audio_cover_strength": request.cover_strength,
        "cfg_interval_start": request.cfg_interval[0],
        "cfg_interval_end": request.cfg_interval[1],
        "timesteps": list(request.timesteps) if request.timesteps else None,
    }


def latent_frames(pipeline: Pipeline, request: Request) -> int | None:
    """Latent frames of the song; None where the source audio decides."""
    if request.src_audio is not None:
        return None
    seconds = request.duration
    if seconds is None:
        codes = count_audio_codes(request.audio_codes)
        seconds = codes / CODES_PER_SECOND or DEFAULT_DURATION
    return math.ceil(seconds * float(pipeline.latents_per_second))


def lyric_tokens(pipeline: Pipeline, request: Request) -> list[int]:
    _, text = pipeline._format_prompt("", request.lyrics, request.language)
    ids = pipeline.tokenizer(text, truncation=True, max_length=2048).input_ids
    return [int(token) for token in ids]


def out_of_memory(policy: DevicePolicy, error: BaseException) -> str:
    return (
        f"{policy.name} ran out of memory ({first_line(error)}); make a shorter song, a smaller batch, "
        "or use offloading where the device has memory of its own"
    )
