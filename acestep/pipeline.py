"""diffusers' ACE-Step pipeline with seeded, exact conditioning and modules that may be away."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AceStepPipeline

from acestep import decode
from acestep.device import DevicePolicy

REFERENCE_SECONDS = 30
"""The timbre encoder hears 30 s of a reference: 10 s from its start, middle and end."""

StepCallback = Callable[[int, int], None]


@dataclass
class Denoised:
    """What one run of the diffusion transformer leaves behind.

    Attributes:
        latents: `[batch, frames, channels]` on the device.
        condition: the transformer's `encoder_hidden_states` without guidance,
            `[batch, tokens, width]`, and `context_latents`, `[batch, frames, 2 * channels]`.
    """

    latents: torch.Tensor
    condition: dict[str, torch.Tensor]


class Pipeline(AceStepPipeline):  # type: ignore[misc]
    """`AceStepPipeline` that encodes source and reference audio exactly and from a seed.

    diffusers draws the VAE's posterior sample from the global generator and encodes a
    whole song at once; here the sample follows from the request's seed, and the encoder
    runs within the device's limits. Everything else is diffusers' own.
    """

    def denoise(
        self,
        policy: DevicePolicy,
        arguments: dict[str, Any],
        seeds: Sequence[int],
        frames: int | None,
        on_step: StepCallback,
        stochastic: bool = False,
    ) -> Denoised:
        """Run the diffusion for one batch.

        Args:
            policy: the device the modules are on.
            arguments: keyword arguments of `AceStepPipeline.__call__`, without generators.
            seeds: one for each item of the batch.
            frames: latent frames of the result, or None when source audio or codes fix them.
            on_step: called with (steps done, steps) after each step; may raise to stop.
            stochastic: after each step renew the noise (SDE) instead of following the ODE.
        """
        self._policy = policy
        # A stream of its own, so that the item's noise does not depend on the source audio.
        self._posterior = policy.generator(seeds[0])
        self._noise_seeds = list(seeds)
        condition: dict[str, torch.Tensor] = {}

        def remember(module: Any, positional: Any, keywords: dict[str, Any]) -> None:
            for name in ("encoder_hidden_states", "context_latents"):
                condition.setdefault(name, keywords[name][: len(seeds)])

        def step_end(
            pipeline: Any, step: int, timestep: float, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            on_step(step + 1, len(self.scheduler.timesteps))
            policy.between_steps()
            if stochastic:
                self._current = self._renoised(step, tensors["latents"])
                return {"latents": self._current}
            return {}

        hook = self.transformer.register_forward_pre_hook(remember, with_kwargs=True)
        try:
            output = self(
                **arguments,
                audio_duration=0.0 if frames is None else frames / self.latents_per_second,
                output_type="latent",
                callback_on_step_end=step_end,
            )
        finally:
            hook.remove()
        return Denoised(output.audios, condition)

    def prepare_latents(
        self,
        batch_size: int,
        audio_duration: float,
        dtype: torch.dtype,
        device: torch.device,
        generator: Any = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noise `[batch, frames, channels]`, each item from its own seed on the host."""
        frames = math.ceil(audio_duration * self.latents_per_second)
        channels = self.transformer.config.audio_acoustic_hidden_dim
        self._noise = [self._policy.generator(seed) for seed in self._noise_seeds]
        self._current = self._draw((frames, channels), device, dtype)
        return self._current

    def _draw(
        self, shape: tuple[int, int], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        noise = [torch.randn(shape, generator=generator) for generator in self._noise]
        return torch.stack(noise).to(device=device, dtype=dtype)

    def _renoised(self, step: int, after: torch.Tensor) -> torch.Tensor:
        """The state after a step, with its noise part drawn anew.

        A flow-matching state is `(1 - t) x0 + t noise`; the Euler step just taken gives the
        velocity and with it the estimate of `x0`.
        """
        now, then = (float(sigma) for sigma in self.scheduler.sigmas[step : step + 2])
        before = self._current.float()
        clean = before - now * (after.float() - before) / (then - now)
        noise = self._draw((after.shape[1], after.shape[2]), after.device, torch.float32)
        return ((1 - then) * clean + then * noise).to(after.dtype)

    def prepare_src_latents(
        self,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int = 1,
        src_audio: torch.Tensor | None = None,
        audio_codes: str | list[str] | None = None,
        latent_length: int | None = None,
        task_type: str = "text2music",
    ) -> tuple[torch.Tensor, int]:
        """Source latents `[batch, frames, channels]` and their number of frames."""
        if audio_codes is not None:
            # diffusers calls a submodule here, past the hook that would bring it in.
            bring(self.audio_tokenizer)
        if src_audio is None:
            latents, frames = super().prepare_src_latents(
                device, dtype, batch_size, None, audio_codes, latent_length, task_type
            )
            return latents, int(frames)
        latents = self._encode(src_audio, dtype)
        frames = latents.shape[1]
        if task_type == "cover":
            silence = self.condition_encoder.silence_latent.to(device=device, dtype=dtype)
            codes, _ = self.audio_tokenizer.tokenize(latents, silence)
            latents = self.audio_token_detokenizer(codes.to(dtype))[:, :frames].contiguous()
        return latents.expand(batch_size, -1, -1), frames

    def prepare_reference_audio_latents(
        self,
        reference_audio: torch.Tensor,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of the reference's three excerpts, and which item each belongs to."""
        samples = REFERENCE_SECONDS * self.sample_rate
        excerpt = samples // 3
        if reference_audio.shape[-1] < samples:
            times = math.ceil(samples / reference_audio.shape[-1])
            reference_audio = reference_audio.repeat(1, times)
        length = reference_audio.shape[-1]
        starts = (0, length // 3, length - excerpt)
        heard = torch.cat([reference_audio[:, s : s + excerpt] for s in starts], dim=-1)
        latents = self._encode(heard, dtype).expand(batch_size, -1, -1)
        return latents, torch.arange(batch_size, device=device)

    def _encode(self, audio: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        latents = decode.encode(self.vae, audio[None], self._policy, generator=self._posterior)
        return latents.transpose(1, 2).to(dtype)


def bring(module: torch.nn.Module) -> None:
    """Move an offloaded module to its device before a part of it is called directly."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
