"""The engine in PyTorch, over the modules of a diffusers pipeline."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from acestep.checkpoint.adapters.applying import ModuleAdapters
from acestep.device import DevicePolicy
from acestep.engines.protocol import TIMBRE_SECONDS, Report, Traits, Velocity, lasting
from acestep.engines.torch import codec, wave_decoder
from acestep.engines.torch.cross_attention import capture_cross_attention
from acestep.engines.torch.offloading import bring
from acestep.engines.torch.pipeline import Pipeline
from acestep.errors import GenerationError, first_line
from acestep.gpu_config import is_short
from acestep.vae.windows import decoder_halo


class TorchEngine:
    """Runs a checkpoint's modules on the policy's device.

    Args:
        pipeline: the modules, where `engines.torch.loading` has put them.
        policy: the device.
        offload: which modules wait on the host until they are called: `none`, `dit` or `all`.
    """

    name = "torch"

    def __init__(self, pipeline: Pipeline, policy: DevicePolicy, offload: str = "none") -> None:
        self.pipeline, self.policy = pipeline, policy
        self._send_home = pipeline.wait_on_host(policy, offload)
        self._silent_timbre: torch.Tensor | None = None
        self.quantization = policy.quantization

    @property
    def xp(self) -> Any:
        """PyTorch itself."""
        return torch

    @property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return self.pipeline.tokenizer

    @cached_property
    def traits(self) -> Traits:
        """What the checkpoint fixes."""
        pipeline = self.pipeline
        return Traits.of(pipeline.transformer, pipeline.vae, pipeline.audio_tokenizer)

    @property
    def adapters(self) -> ModuleAdapters:
        """Those of the transformer."""
        return ModuleAdapters(self.pipeline)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time of one request; modules that wait on the host are back there afterwards."""
        try:
            with self.policy.current(), self.policy.full_precision(), torch.inference_mode():
                yield
        except torch.OutOfMemoryError as error:
            raise GenerationError(out_of_memory(self.policy, error)) from None
        finally:
            self._send_home()
            if is_short(self.policy):
                # What decodes a song is made of its weights anew, and they are few.
                wave_decoder.forget(self.pipeline.vae)
            self.pipeline.maybe_free_model_hooks()
            self.policy.after_request()

    def array(self, host: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the device, float32."""
        return host.to(self.policy.device, torch.float32)

    def host(self, array: torch.Tensor) -> torch.Tensor:
        """A tensor of the device on the host, float32."""
        return array.to("cpu", torch.float32)

    def precise(self, array: torch.Tensor) -> torch.Tensor:
        """A tensor in float32."""
        return array.float()

    def advance(self, state: torch.Tensor, velocity: torch.Tensor, by: float) -> torch.Tensor:
        """`state + by * velocity`, one launch."""
        return torch.add(state, velocity, alpha=by)

    def encode_words(
        self, text: Sequence[int], lyrics: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lyrics `[1, lyric tokens, width]` and text `[1, text tokens, width]`."""
        ids = (torch.tensor([list(ids)], device=self.policy.device) for ids in (text, lyrics))
        return self.pipeline.prompt_encoder(self.policy)(*ids)

    def encode_timbre(self, latents: torch.Tensor | None) -> torch.Tensor:
        """`[1, 1, width]` of `[frames, channels]`, or of silence."""
        encoder = self.pipeline.condition_encoder
        if latents is not None:
            # Encoding the reference may have sent the condition encoder home.
            bring(encoder)
            return self._timbre(latents[None])
        if self._silent_timbre is None:
            heard = math.ceil(TIMBRE_SECONDS * self.traits.frame_rate)
            self._silent_timbre = self._timbre(encoder.silence_latent[:, :heard])
        return self._silent_timbre

    def _timbre(self, latents: torch.Tensor) -> torch.Tensor:
        device, dtype = self.policy.device, self.pipeline.transformer.dtype
        order = torch.zeros(1, dtype=torch.long, device=device)
        encode = self.pipeline.condition_encoder.timbre_encoder
        made: torch.Tensor = encode(latents.to(device, dtype), order)[0]
        return made

    def unconditional(self, encoded: torch.Tensor) -> torch.Tensor:
        """The learned empty condition, as wide and long as another."""
        empty: torch.Tensor = self.pipeline.condition_encoder.null_condition_emb
        return empty.to(encoded).expand_as(encoded)

    def velocity(
        self, encoded: torch.Tensor, context: torch.Tensor, times: Sequence[float]
    ) -> Velocity:
        """The transformer's velocities, in its own precision."""
        bring(self.pipeline.transformer)
        placed = context.to(self.policy.device, self.pipeline.transformer.dtype)
        return self.pipeline.steps(self.policy).velocity(encoded, placed, times)

    def silence(self, frames: int) -> torch.Tensor:
        """Latents of silence, repeated where the checkpoint has fewer."""
        return lasting(self._known_silence, frames)

    @cached_property
    def _known_silence(self) -> torch.Tensor:
        # The host has its own copy: a request must not wait for the device to hand one over.
        latent: torch.Tensor = self.pipeline.condition_encoder.silence_latent
        return latent[0].to("cpu", torch.float32, copy=True)

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio `[2, samples]` to the mean of its latents, `[frames, channels]`."""
        bring(self.pipeline.vae)
        latents = codec.encode(self.pipeline.vae, audio[None], self.policy)
        return self.host(latents[0].mT)

    def decode(
        self, latents: torch.Tensor, samples: int, report: Report | None = None
    ) -> torch.Tensor:
        """Latents `[batch, frames, channels]` to the first samples of their audio."""
        vae = self.pipeline.vae
        # What lies further off than the decoder reaches changes none of the samples.
        needed = -(-samples // self.traits.frame_samples) + decoder_halo(vae)
        audio = codec.decode(
            vae,
            latents[:, :needed].mT,
            self.policy,
            compiled=self.pipeline.compiles,
            on_chunk=report,
        )
        return audio[..., :samples]

    def codes_of(self, latents: torch.Tensor) -> list[int]:
        """Latents `[frames, channels]` to audio codes."""
        tokenizer = self.pipeline.audio_tokenizer
        bring(tokenizer)
        placed = latents[None].to(self.policy.device, self.pipeline.transformer.dtype)
        silence = self.silence(self.traits.code_frames)[None].to(placed)
        _, indices = tokenizer.tokenize(placed, silence)
        return [int(code) for code in indices.flatten().tolist()]

    def latents_of(self, codes: Sequence[int]) -> torch.Tensor:
        """Audio codes to latents `[codes * code_frames, channels]`."""
        tokenizer, restore = self.pipeline.audio_tokenizer, self.pipeline.audio_token_detokenizer
        # diffusers calls a submodule here, past the hook that would bring it in.
        bring(tokenizer)
        dtype = self.pipeline.transformer.dtype
        indices = torch.tensor([list(codes)], device=self.policy.device)[..., None]
        embedded = tokenizer.quantizer.get_output_from_indices(indices).to(dtype)
        bring(restore)
        return self.host(restore(embedded)[0])

    def cross_attention(
        self,
        inputs: Mapping[str, torch.Tensor],
        heads: Mapping[int, Sequence[int]],
        tokens: slice,
    ) -> torch.Tensor:
        """Where some heads look, `[1, heads, tokens, frames]` on the device."""
        times = dict.fromkeys(("timestep", "timestep_r"), inputs["timestep"])
        place = self.policy.device, self.policy.dtype
        placed = {name: tensor.to(*place) for name, tensor in {**inputs, **times}.items()}
        return capture_cross_attention(self.pipeline.transformer, placed, heads, tokens)

    def leave(self) -> None:
        """An offloaded transformer goes home."""
        self._send_home()

    def after_step(self) -> None:
        """Keep the device's allocator in bounds."""
        self.policy.between_steps()

    def close(self) -> None:
        """Give the memory back."""
        self.pipeline.remove_all_hooks()
        self.pipeline.forget()
        del self.pipeline, self._send_home
        self._silent_timbre = None
        gc.collect()
        self.policy.flush()


def out_of_memory(policy: DevicePolicy, error: BaseException) -> str:
    """What to do about it, in a line."""
    return (
        f"{policy.name} ran out of memory ({first_line(error)}); make a shorter song, a smaller batch, "
        "or use offloading where the device has memory of its own"
    )
