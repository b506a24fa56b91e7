"""diffusers' ACE-Step pipeline with seeded, exact conditioning and steps of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AceStepPipeline

from acestep.device import DevicePolicy
from acestep.diffusion.sampling import Denoiser, Guidance, Schedule
from acestep.engines.recent import Recent
from acestep.engines.torch import codec, wave_decoder
from acestep.engines.torch.offloading import bring
from acestep.engines.torch.prompt_encoder import PromptEncoder
from acestep.engines.torch.transformer import StepTransformer

REFERENCE_SECONDS = 30
"""The timbre encoder hears 30 s of a reference: 10 s from its start, middle and end."""

MAX_TEXT_TOKENS, MAX_LYRIC_TOKENS = 256, 2048
"""What the prompt and the lyrics are cut to, as in diffusers' pipeline."""

MAX_ENCODINGS = 32
"""Encoded prompts kept for the next request with the same words; about 1 MB each at turbo size."""

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
    """`AceStepPipeline` whose randomness follows from seeds, and whose steps are quick.

    diffusers draws the VAE's posterior sample from the global generator and encodes a
    whole song at once; here the sample follows from the request's seed, and the encoder
    runs within the device's limits. Conditions are encoded once for a batch, which shares
    its words, and kept for the next request; the steps are those of `sampling`.
    """

    compiles = False
    """Whether the transformer's layers and the VAE's decoder are compiled on first use."""

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
        encoded, plain, context = self._conditions(arguments, len(seeds), frames)
        schedule = Schedule.make(
            arguments["num_inference_steps"], arguments["shift"], arguments["timesteps"]
        )
        bring(self.transformer)
        velocity = self._velocity(arguments, schedule, encoded, plain, context)
        noise = [policy.generator(seed) for seed in seeds]
        state = _draw(noise, context.shape[1], context.shape[2] // 2, context.device)
        for step in range(len(schedule)):
            now, then = schedule.span(step)
            change = velocity(state, step)
            if stochastic:
                # A state is (1 - t) x0 + t noise, and the velocity is noise - x0.
                clean = torch.add(state, change, alpha=-now)
                renewed = _draw(noise, state.shape[1], state.shape[2], state.device)
                state = (1 - then) * clean + then * renewed
            else:
                state = torch.add(state, change, alpha=then - now)
            on_step(step + 1, len(schedule))
            policy.between_steps()
        condition = {"encoder_hidden_states": encoded, "context_latents": context}
        return Denoised(state.to(context.dtype), condition)

    def forget(self) -> None:
        """Drop what was prepared from the modules' weights: they are about to move."""
        self._denoiser: Denoiser | None = None
        self._prompts: PromptEncoder | None = None
        wave_decoder.forget(self.vae)

    def _steps(self) -> Denoiser:
        denoiser: Denoiser | None = getattr(self, "_denoiser", None)
        if denoiser is None or not denoiser.model.is_current(self.transformer):
            model = StepTransformer(self.transformer)
            if self.compiles:
                model.compile(self._policy)
            self._denoiser = denoiser = Denoiser(model, self._policy)
        return denoiser

    def _velocity(
        self,
        arguments: dict[str, Any],
        schedule: Schedule,
        encoded: torch.Tensor,
        plain: torch.Tensor | None,
        context: torch.Tensor,
    ) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """The velocity of a state at a step, with guidance and blending where asked for."""
        steps = self._steps()
        scale = arguments["guidance_scale"]
        low, high = arguments["cfg_interval_start"], arguments["cfg_interval_end"]
        guided_steps = [scale > 1 and low <= 1 - time <= high for time in schedule.times]
        single = both = blended = None
        if not all(guided_steps):
            single = steps.velocity(encoded, context, schedule)
        if any(guided_steps):
            null = self.condition_encoder.null_condition_emb.to(encoded).expand_as(encoded)
            both = steps.velocity(
                torch.cat([encoded, null]), torch.cat([context, context]), schedule
            )
        if plain is not None:
            blended = steps.velocity(plain, context, schedule, place=1)
        guidance, strength = Guidance(scale), arguments["audio_cover_strength"]

        def velocity(state: torch.Tensor, step: int) -> torch.Tensor:
            if both is not None and guided_steps[step]:
                made = guidance(*both(torch.cat([state, state]), step).chunk(2))
            else:
                assert single is not None
                made = single(state, step)
            if blended is not None:
                made = strength * made + (1 - strength) * blended(state, step)
            return made

        return velocity

    def _conditions(
        self, arguments: dict[str, Any], batch: int, frames: int | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """What the batch is conditioned on: the words with the timbre, the same for plain
        text-to-music where a weak cover blends it in, and the context latents."""
        task, codes = arguments["task_type"], arguments["audio_codes"]
        source = arguments["src_audio"]
        if codes is not None and task == "text2music":
            task = "cover"
        seconds = frames / self.latents_per_second if frames else 0.0
        if source is not None:
            seconds = source.shape[-1] / self.sample_rate
        instruction = arguments["instruction"] or self._get_task_instruction(
            task_type=task,
            track_name=arguments["track_name"],
            complete_track_classes=arguments["complete_track_classes"],
        )
        device, dtype = self._execution_device, self.transformer.dtype
        # The source draws from the posterior's stream first, then the reference.
        context = self._context(arguments, task, batch, frames, device, dtype)
        encoded = self._encoded(arguments, instruction, seconds)
        plain = None
        if arguments["audio_cover_strength"] < 1.0 and task == "cover":
            text_only = self._get_task_instruction(task_type="text2music")
            plain = self._encoded(arguments, text_only, seconds).expand(batch, -1, -1)
        return encoded.expand(batch, -1, -1), plain, context

    def _context(
        self,
        arguments: dict[str, Any],
        task: str,
        batch: int,
        frames: int | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Source latents beside the mask of what to generate, `[batch, frames, 2 * channels]`."""
        source, codes = arguments["src_audio"], arguments["audio_codes"]
        latents, frames = self.prepare_src_latents(
            device, dtype, batch, source, codes, frames, task
        )
        mask = self._build_chunk_mask(
            task_type=task,
            latent_length=frames,
            batch_size=batch,
            device=device,
            dtype=dtype,
            acoustic_dim=self.transformer.config.audio_acoustic_hidden_dim,
            repainting_start=arguments["repainting_start"],
            repainting_end=arguments["repainting_end"],
            has_src_audio=source is not None,
        )
        if task == "repaint" and source is not None:
            silence, _ = self.prepare_src_latents(device, dtype, batch, latent_length=frames)
            latents = torch.where(mask > 0.5, silence, latents)
        return torch.cat([latents, mask], dim=-1)

    def _encoded(self, arguments: dict[str, Any], instruction: str, seconds: float) -> torch.Tensor:
        """The condition encoder's output for one item, `[1, tokens, width]`.

        A batch shares caption, lyrics and reference, so that one item is all there is to encode.
        """
        settings = {
            "vocal_language": arguments["vocal_language"][0],
            "audio_duration": seconds,
            "instruction": instruction,
            **{name: arguments[name] for name in ("bpm", "keyscale", "timesignature")},
        }
        prompt, lyrics = arguments["prompt"][0], arguments["lyrics"][0]
        reference = arguments["reference_audio"]

        def encode() -> torch.Tensor:
            device = self._execution_device
            ids = (ids.to(device) for ids in self._tokens(prompt, lyrics, **settings))
            sung, text = self._prompt_encoder()(*ids)
            return torch.cat([sung, self._timbre(reference, device), text], dim=1)

        if reference is not None:
            return encode()
        kept: Recent[Any, torch.Tensor] = self.__dict__.setdefault("_kept", Recent(MAX_ENCODINGS))
        return kept.find((prompt, lyrics, *settings.values()), encode)

    def _tokens(
        self, prompt: str, lyrics: str, **settings: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the formatted prompt and lyrics, `[1, tokens]` each, cut as diffusers does."""
        texts = self._format_prompt(prompt=prompt, lyrics=lyrics, **settings)
        text, words = (
            self.tokenizer(text, truncation=True, max_length=most, return_tensors="pt").input_ids
            for text, most in zip(texts, (MAX_TEXT_TOKENS, MAX_LYRIC_TOKENS), strict=True)
        )
        return text, words

    def _prompt_encoder(self) -> PromptEncoder:
        encoder: PromptEncoder | None = getattr(self, "_prompts", None)
        modules = self.text_encoder, self.condition_encoder
        if encoder is None or not encoder.is_current(*modules):
            self._prompts = encoder = PromptEncoder(*modules, self._policy)
        return encoder

    def _timbre(self, reference: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """The timbre to follow, `[1, 1, width]`; without a reference that of silence."""
        encoder, dtype = self.condition_encoder, self.transformer.dtype
        if reference is not None:
            latents, order = self.prepare_reference_audio_latents(reference, 1, device, dtype)
            # Encoding the reference may have sent the condition encoder home.
            bring(encoder)
            made: torch.Tensor = encoder.timbre_encoder(latents, order)[0]
            return made
        silence: torch.Tensor | None = getattr(self, "_silence", None)
        if silence is None:
            heard = math.ceil(REFERENCE_SECONDS * self.latents_per_second)
            latents = encoder.silence_latent[:, :heard].to(device=device, dtype=dtype)
            order = torch.zeros(1, dtype=torch.long, device=device)
            self._silence = silence = encoder.timbre_encoder(latents, order)[0]
        return silence

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
        latents = codec.encode(self.vae, audio[None], self._policy, generator=self._posterior)
        return latents.transpose(1, 2).to(dtype)


def _draw(
    generators: Sequence[torch.Generator], frames: int, channels: int, device: torch.device
) -> torch.Tensor:
    """Noise `[batch, frames, channels]` in float32, each item from its own seed on the host."""
    noise = [torch.randn((frames, channels), generator=generator) for generator in generators]
    return torch.stack(noise).to(device)
