"""The engine in MLX: one checkpoint's modules, and what is asked of them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mlx.core as mx
import torch

from acestep.device import DevicePolicy
from acestep.engines.heads import checked_table
from acestep.engines.mlx.adapters import Adapters
from acestep.engines.mlx.arrays import from_torch, to_torch
from acestep.engines.mlx.codec import Codec
from acestep.engines.mlx.encoders import ConditionEncoder, TextEncoder
from acestep.engines.mlx.place import Place
from acestep.engines.mlx.tokens import AudioTokenizer, Detokenizer
from acestep.engines.mlx.transformer import SongInputs, Transformer
from acestep.engines.protocol import TIMBRE_SECONDS, Report, Traits, Velocity, lasting

Step = Callable[[mx.array, SongInputs, mx.array, mx.array], mx.array]
"""Of latents, what a batch's steps share, and a step's two embeddings: the velocity."""


@dataclass
class Parts:
    """The modules of a checkpoint.

    Attributes:
        silence: latents of silence, `[frames, channels]`, float32 on the host.
        words: the tokenizer of the text encoder.
    """

    transformer: Transformer
    condition_encoder: ConditionEncoder
    text_encoder: TextEncoder
    audio_tokenizer: AudioTokenizer | None
    detokenizer: Detokenizer | None
    codec: Codec
    silence: torch.Tensor
    words: Any


class MlxEngine:
    """Runs a checkpoint's modules on MLX's device for a policy.

    Args:
        parts: the modules, with their weights.
        traits: what the checkpoint fixes.
        policy: the device.
        place: where MLX works for it.
        adapters: those of the transformer.
        compiles: let MLX fuse what a step does.
    """

    name = "mlx"

    def __init__(
        self,
        parts: Parts,
        traits: Traits,
        policy: DevicePolicy,
        place: Place,
        adapters: Adapters,
        compiles: bool = False,
    ) -> None:
        self.parts, self.policy, self.adapters = parts, policy, adapters
        self.quantization = policy.quantization
        self._traits, self._place = traits, place
        self._compiles = compiles
        self._silent_timbre: mx.array | None = None

    @property
    def xp(self) -> Any:
        """MLX's core, whose functions go by NumPy's names."""
        return mx

    @property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return self.parts.words

    @property
    def traits(self) -> Traits:
        """What the checkpoint fixes."""
        return self._traits

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time of one request, after which MLX keeps nothing of it."""
        try:
            with self._place.working(), torch.inference_mode():
                yield
        finally:
            mx.clear_cache()

    def array(self, host: torch.Tensor) -> mx.array:
        """A tensor of the host as an array, float32."""
        return from_torch(host.float())

    def host(self, array: mx.array) -> torch.Tensor:
        """An array as a tensor on the host, float32; computed now."""
        return to_torch(array)

    def precise(self, array: mx.array) -> mx.array:
        """An array in float32."""
        return array.astype(mx.float32)

    def advance(self, state: mx.array, velocity: mx.array, by: float) -> mx.array:
        """`state + by * velocity`, computed when it is needed."""
        return state + by * velocity.astype(state.dtype)

    def encode_words(self, text: Sequence[int], lyrics: Sequence[int]) -> tuple[mx.array, mx.array]:
        """Lyrics `[1, lyric tokens, width]` and text `[1, text tokens, width]`."""
        encoder, conditions = self.parts.text_encoder, self.parts.condition_encoder
        read = conditions.text_projector(encoder(mx.array([list(text)])).astype(self._dtype))
        words = encoder.embed_tokens(mx.array([list(lyrics)])).astype(self._dtype)
        sung = conditions.lyric_encoder(words)
        # What is kept for the next request is an array, and no plan to make one.
        mx.eval(sung, read)
        return sung, read

    def encode_timbre(self, latents: torch.Tensor | None) -> mx.array:
        """`[1, 1, width]` of `[frames, channels]`, or of silence."""
        if latents is not None:
            return self._timbre(latents)
        if self._silent_timbre is None:
            heard = math.ceil(TIMBRE_SECONDS * self.traits.frame_rate)
            self._silent_timbre = self._timbre(self.parts.silence[:heard])
        return self._silent_timbre

    def _timbre(self, latents: torch.Tensor) -> mx.array:
        given = from_torch(latents.float()).astype(self._dtype)[None]
        made: mx.array = self.parts.condition_encoder.timbre_encoder(given)
        mx.eval(made)
        return made

    def unconditional(self, encoded: mx.array) -> mx.array:
        """The learned empty condition, as wide and long as another."""
        empty = self.parts.condition_encoder.null_condition_emb.astype(encoded.dtype)
        return mx.broadcast_to(empty, encoded.shape)

    def velocity(
        self, encoded: mx.array, context: torch.Tensor, times: Sequence[float]
    ) -> Velocity:
        """The transformer's velocities, each computed in one go: one evaluation a step."""
        model = self.parts.transformer
        song = model.song(encoded, from_torch(context.float()))
        plain, layers = model.times(times)
        mx.eval(song.keys, song.values, song.context, plain, layers)
        run = self._run

        def at(latents: mx.array, step: int) -> mx.array:
            made: mx.array = run(latents, song, plain[step], layers[step])
            mx.eval(made)
            return made

        return at

    @cached_property
    def _run(self) -> Step:
        """The transformer's step, fused by MLX where that was asked for."""
        model = self.parts.transformer
        if not self._compiles:
            return model

        # MLX compiles functions of arrays. Those of the model are read anew in each call, so that
        # an adapter counts.
        def step(latents: mx.array, song: Any, plain: mx.array, layers: mx.array) -> mx.array:
            return model(latents, SongInputs.of(song), plain, layers)

        fused: Any = mx.compile(step, inputs=[model.state])
        return lambda latents, song, plain, layers: fused(latents, song.arrays(), plain, layers)

    def silence(self, frames: int) -> torch.Tensor:
        """Latents of silence, repeated where the checkpoint has fewer."""
        return lasting(self.parts.silence, frames)

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio `[2, samples]` to the mean of its latents, `[frames, channels]`."""
        return self.parts.codec.encode(audio)

    def decode(self, latents: mx.array, samples: int, report: Report | None = None) -> torch.Tensor:
        """Latents `[batch, frames, channels]` to the first samples of their audio."""
        # What lies further off than the decoder reaches changes none of the samples.
        needed = -(-samples // self.traits.frame_samples) + self.parts.codec.halo
        return self.parts.codec.decode(latents[:, :needed], report)[..., :samples]

    def codes_of(self, latents: torch.Tensor) -> list[int]:
        """Latents `[frames, channels]` to audio codes."""
        tokenizer, one = self.parts.audio_tokenizer, self.traits.code_frames
        assert tokenizer is not None, "a checkpoint without codes is not asked for any"
        filled = torch.cat([latents.float().cpu(), self.silence(-len(latents) % one)])
        given = from_torch(filled).astype(self._dtype)
        codes: Any = tokenizer(mx.unflatten(given, 0, (-1, one))).tolist()
        return [int(code) for code in codes]

    def latents_of(self, codes: Sequence[int]) -> torch.Tensor:
        """Audio codes to latents `[codes * code_frames, channels]`."""
        tokenizer, restore = self.parts.audio_tokenizer, self.parts.detokenizer
        assert tokenizer is not None, "a checkpoint without codes is not given any"
        assert restore is not None, "likewise"
        embedded = tokenizer.quantizer.embedded(mx.array(list(codes))).astype(self._dtype)
        return to_torch(restore(embedded))

    def cross_attention(
        self,
        inputs: Mapping[str, torch.Tensor],
        heads: Mapping[int, Sequence[int]],
        tokens: slice,
    ) -> torch.Tensor:
        """Where some heads look, `[1, heads, tokens, frames]`, softmax over all tokens.

        Raises:
            RequestError: a layer or head does not exist; the message says how many there are.
        """
        model = self.parts.transformer
        table = checked_table(heads, (len(model.layers), model.shape_of.attention.heads))
        given = {name: from_torch(value.detach().float().cpu()) for name, value in inputs.items()}
        song = model.song(given["encoder_hidden_states"], given["context_latents"])
        _, layers = model.times([float(inputs["timestep"].flatten()[0])])
        found = model.weights(given["hidden_states"], song, layers[0], table)
        kept = found[..., tokens].swapaxes(2, 3)
        return to_torch(kept).to(self.policy.device)

    def leave(self) -> None:
        """Nothing is moved: host and device share their memory where this engine is at home."""

    def after_step(self) -> None:
        """Each step's velocity has been computed, and MLX's cache has a bound."""

    def close(self) -> None:
        """Give the memory back."""
        self._silent_timbre = None
        vars(self).pop("_run", None)
        # Each of these holds the transformer.
        del self.parts, self.adapters
        gc.collect()
        mx.clear_cache()

    @property
    def _dtype(self) -> mx.Dtype:
        return self.parts.transformer.dtype


def without_device(policy: DevicePolicy) -> DevicePolicy:
    """The policy with PyTorch on the host, where its part of the reading is done."""
    return replace(policy, device=torch.device("cpu"))
