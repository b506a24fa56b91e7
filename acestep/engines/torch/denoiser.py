"""The velocities of a song's steps, without a wait of the host between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acestep.device import DevicePolicy
from acestep.engines.protocol import Velocity
from acestep.engines.recent import Recent, rounded_up
from acestep.engines.torch.attention import PackedAttention, SdpaAttention, packed_starts
from acestep.engines.torch.transformer import SongInputs, StepTransformer

BUCKET = 128
"""Recorded steps have room for a multiple of this many tokens, 10.24 s of music; the longest
waste is 10 s of a song, and songs of all lengths need 59 recordings at most."""

MAX_RECORDINGS = 3
"""Recorded steps kept at a time; each holds the activations of one step."""


class Denoiser:
    """Prepares songs for a transformer and runs its steps, recorded where that pays."""

    def __init__(self, model: StepTransformer, policy: DevicePolicy) -> None:
        self.model, self.policy = model, policy
        self._recordings: Recent[tuple[int, ...], _Recording] = Recent(MAX_RECORDINGS)

    def velocity(
        self, encoded: torch.Tensor, context: torch.Tensor, times: Sequence[float]
    ) -> Velocity:
        """A function of latents `[batch, frames, channels]` and a step's number.

        Args:
            encoded: the condition, `[batch, tokens, width]`.
            context: `[batch, frames, 2 * channels]`.
            times: of the steps.
        """
        dtype = context.dtype
        plain, layers = self.model.times(
            torch.tensor(list(times), dtype=torch.float32).to(dtype).to(context.device)
        )
        if self.policy.records and self.policy.has_packed_attention(dtype):
            recording = self._recording(encoded, context)
            recording.fill(encoded, context)
            return lambda latents, step: recording(latents, plain[step], layers[step])
        song = self._song(encoded, context)
        return lambda latents, step: self.model(latents.to(dtype), song, plain[step], layers[step])

    def _song(self, encoded: torch.Tensor, context: torch.Tensor) -> SongInputs:
        model = self.model
        keys, values = model.condition(encoded)
        embedded = model.context(context)
        patches = embedded.shape[1]
        groups = model.heads // model.kv_heads
        attention = SdpaAttention(patches, model.window, groups, embedded)
        return SongInputs(keys, values, embedded, model.rotary(patches, embedded), attention)

    def _recording(self, encoded: torch.Tensor, context: torch.Tensor) -> _Recording:
        """The recorded step with room for this song; the one unused longest makes way."""
        room = rounded_up(self.model.patches(context.shape[1]), BUCKET)
        key = (encoded.shape[0], room, rounded_up(encoded.shape[1], BUCKET))
        return self._recordings.find(
            key, lambda: _Recording(self.model, self.policy, *key, like=encoded)
        )


class _Recording:
    """One step with its own buffers, replayed for every song that fits them."""

    def __init__(
        self,
        model: StepTransformer,
        policy: DevicePolicy,
        batch: int,
        room: int,
        condition_room: int,
        like: torch.Tensor,
    ) -> None:
        self.model, self.policy = model, policy
        self.batch, self.room, self.condition_room = batch, room, condition_room
        width = model.model.config.hidden_size

        def zeros(*shape: int, dtype: torch.dtype = like.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=like.device)

        layers = len(model.layers)
        condition = zeros(2, layers, batch, condition_room, model.kv_heads, model.head_dim)
        self._keys, self._values = condition[0], condition[1]
        self._latents = zeros(batch, room * model.patch, model.channels)
        self._velocity = torch.zeros_like(self._latents)
        self._plain, self._times = zeros(1, width), zeros(6, width)
        self._starts = zeros(2 * batch + 1, dtype=torch.int32)
        self._condition_starts = torch.zeros_like(self._starts)
        attention = PackedAttention(
            self._starts, self._condition_starts, room, condition_room, model.window
        )
        self._song = SongInputs(
            list(self._keys),
            list(self._values),
            zeros(batch, room, width),
            model.rotary(room, like),
            attention,
        )
        self._replay: Callable[[], None] | None = None

    def fill(self, encoded: torch.Tensor, context: torch.Tensor) -> None:
        """Put a song into the buffers."""
        keys, values = self.model.condition(encoded)
        tokens, patches = encoded.shape[1], self.model.patches(context.shape[1])
        self._keys[:, :, :tokens].copy_(torch.stack(keys))
        self._values[:, :, :tokens].copy_(torch.stack(values))
        self._song.context[:, :patches].copy_(self.model.context(context))
        self._latents.zero_()
        for into, length, room in (
            (self._starts, patches, self.room),
            (self._condition_starts, tokens, self.condition_room),
        ):
            starts = packed_starts(length, room, self.batch)
            into.copy_(torch.tensor(starts, dtype=torch.int32))
        if self._replay is None:
            self._replay = self.policy.captured(self._step)

    def __call__(
        self, latents: torch.Tensor, plain: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        assert self._replay is not None
        frames = latents.shape[1]
        self._latents[:, :frames].copy_(latents)
        self._plain.copy_(plain)
        self._times.copy_(times)
        self._replay()
        return self._velocity[:, :frames]

    def _step(self) -> None:
        self._velocity.copy_(self.model(self._latents, self._song, self._plain, self._times))
