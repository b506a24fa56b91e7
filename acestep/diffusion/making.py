"""One request turned into songs: conditions, latents, audio, in that order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from acestep.device import DevicePolicy
from acestep.diffusion.conditions import Conditioner, Conditions
from acestep.diffusion.denoise import check_latents, denoise
from acestep.diffusion.prompts import lyric_ids
from acestep.diffusion.schedule import moved_times
from acestep.engines.protocol import Array, Engine
from acestep.song.level import checked_peak, normalized
from acestep.song.outcome import Generation, Song
from acestep.song.progress import Clock, Report
from acestep.song.request import Request

# Share of the progress bar at which the diffusion starts and ends.
_DIFFUSION = (0.05, 0.8)


class Maker:
    """Makes songs with one engine.

    Args:
        engine: a loaded checkpoint.
        policy: the device it is on.
    """

    def __init__(self, engine: Engine, policy: DevicePolicy) -> None:
        self.engine, self.policy = engine, policy
        self.conditioner = Conditioner(engine)

    def make(self, request: Request, warnings: Sequence[str], report: Report) -> Generation:
        """The songs of a request that is valid for the checkpoint.

        Raises:
            GenerationError: the model's output cannot be used, or memory ran out.
            CancelledError: the report says that they are no longer wanted.
        """
        engine, clock = self.engine, Clock(self.policy.synchronize)
        said = [*warnings, *moved_times(request, engine.traits.is_turbo)]
        rate = engine.traits.frame_rate
        self.policy.reset_peak_memory()
        report(0.0, "reading the prompt")
        with engine.working():
            with clock("diffusion"):
                conditions, latents = self._latents(request, report)
                engine.leave()
                handed_out = engine.host(latents)
                check_latents(handed_out, self.policy)
            with clock("decoding"):
                audio = self._audio(request, conditions, latents, report)
            tensors = {
                "pred_latents": handed_out,
                "encoder_hidden_states": engine.host(conditions.encoded),
                "context_latents": conditions.context.contiguous(),
            }
        return Generation(
            songs=[
                Song(item, engine.traits.sample_rate, seed)
                for item, seed in zip(audio, request.seeds, strict=True)
            ],
            request=request,
            warnings=said,
            tensors=tensors,
            latent_seconds=handed_out.shape[1] / rate,
            lyric_token_ids=lyric_ids(engine.tokenizer, request),
            times=clock.seconds,
            peak_memory=self.policy.peak_memory(),
        )

    def _latents(self, request: Request, report: Report) -> tuple[Conditions, Array]:
        low, high = _DIFFUSION

        def on_step(done: int, steps: int) -> None:
            report.part(low, high, done / steps, f"step {done}/{steps}")

        conditions = self.conditioner(request)
        return conditions, denoise(self.engine, request, conditions, on_step)

    def _audio(
        self, request: Request, conditions: Conditions, latents: Array, report: Report
    ) -> torch.Tensor:
        """`[batch, 2, samples]` of the length asked for, on the host."""
        traits, start = self.engine.traits, _DIFFUSION[1]
        report(start, "decoding")
        short = -(-conditions.samples // traits.frame_samples) - latents.shape[1]
        if short > 0:
            # A length between two frames goes on with what the last one sounds like.
            last = [latents[:, -1:]] * short
            latents = self.engine.xp.concatenate([latents, *last], axis=1)
        audio = self.engine.decode(
            latents,
            conditions.samples,
            lambda done: report.part(start, 1.0, done, "decoding"),
        )
        repaint, source = conditions.repaint, request.src_audio
        if (
            repaint is None
            or source is None
            or repaint.covers(audio.shape[-1] / traits.sample_rate)
        ):
            return normalized(audio)
        # The source keeps its level, and what joins it must not jump.
        heard = repaint.wave_mask(audio.shape[-1], traits.sample_rate) > 0
        peak = checked_peak(audio[..., heard]).clamp(min=1.0)
        return repaint.joined(audio / peak, source, traits.sample_rate)
