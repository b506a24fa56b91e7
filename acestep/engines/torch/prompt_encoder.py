"""Prompt and lyrics to what the transformer attends to, recorded where that pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from acestep.device import DevicePolicy
from acestep.engines.recent import Recent, rounded_up
from acestep.engines.torch.addresses import places
from acestep.engines.torch.offloading import bring

TEXT_BUCKET, LYRIC_BUCKET = 64, 128
"""Recordings have room for a multiple of this many tokens."""

MAX_RECORDINGS = 4
"""Recordings kept at a time, each for one pair of lengths."""

Encoded = tuple[torch.Tensor, torch.Tensor]


class PromptEncoder:
    """Runs the text encoder and the lyric encoder for one prompt.

    For a prompt of a hundred tokens a GPU waits for the host to launch some two thousand
    short kernels. A pair of lengths that comes up again is therefore recorded, with room for
    a few tokens more: the text encoder looks back only, so that what follows a prompt changes
    nothing, and the lyric encoder is told what is padding.

    Args:
        text_encoder: a `transformers.Qwen3Model`.
        condition_encoder: a `diffusers` `AceStepConditionEncoder`.
        policy: the device.
    """

    def __init__(self, text_encoder: Any, condition_encoder: Any, policy: DevicePolicy) -> None:
        self.text_encoder, self.condition_encoder = text_encoder, condition_encoder
        self.policy = policy
        self._seen: Counter[tuple[int, int]] = Counter()
        self._recordings: Recent[tuple[int, int], _Recording] = Recent(MAX_RECORDINGS)
        self.pool = policy.recording_pool()
        self._signature = places(text_encoder, condition_encoder)

    def is_current(self, text_encoder: Any, condition_encoder: Any) -> bool:
        """Whether the modules still have their weights where they were."""
        return places(text_encoder, condition_encoder) == self._signature

    def __call__(self, text: torch.Tensor, lyrics: torch.Tensor) -> Encoded:
        """Encode one prompt.

        Args:
            text: ids `[1, tokens]` on the device.
            lyrics: likewise.

        Returns:
            The lyrics, `[1, lyric tokens, width]`, and the text, `[1, text tokens, width]`.
        """
        key = rounded_up(text.shape[1], TEXT_BUCKET), rounded_up(lyrics.shape[1], LYRIC_BUCKET)
        self._seen[key] += 1
        if not self.policy.records or self._seen[key] < 2 or _visits(self.text_encoder):
            return self._plain(text, lyrics)
        recording = self._recordings.find(key, lambda: _Recording(self, *key))
        return recording(text, lyrics)

    def _plain(self, text: torch.Tensor, lyrics: torch.Tensor) -> Encoded:
        read = self.text_encoder(input_ids=text).last_hidden_state
        return self.after_text(read, lyrics, torch.ones_like(lyrics, dtype=torch.bool))

    def after_text(self, read: torch.Tensor, lyrics: torch.Tensor, mask: torch.Tensor) -> Encoded:
        """What follows the text encoder: lyrics are embedded by it, and encoded elsewhere.

        Args:
            read: the text encoder's states, `[1, text tokens, width]`.
            lyrics: ids `[1, lyric tokens]`.
            mask: which of them are no padding, likewise.
        """
        words = self.text_encoder.get_input_embeddings()(lyrics)
        encoder = self.condition_encoder
        # Its parts are called directly. Not earlier: its coming may send the text encoder home.
        bring(encoder)
        sung = encoder.lyric_encoder(inputs_embeds=words, attention_mask=mask)
        return sung, encoder.text_projector(read)


class _Recording:
    """One pair of lengths, with buffers of its own."""

    def __init__(self, owner: PromptEncoder, text_room: int, lyric_room: int) -> None:
        self._owner = owner

        def ids(room: int) -> torch.Tensor:
            return torch.zeros(1, room, dtype=torch.long, device=owner.policy.device)

        self._text, self._lyrics = ids(text_room), ids(lyric_room)
        self._mask = torch.ones_like(self._lyrics, dtype=torch.bool)
        self._made: Encoded | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, text: torch.Tensor, lyrics: torch.Tensor) -> Encoded:
        for ids, given in ((self._text, text), (self._lyrics, lyrics)):
            ids.zero_()
            ids[:, : given.shape[1]].copy_(given)
        self._mask.zero_()
        self._mask[:, : lyrics.shape[1]] = True
        if self._replay is None:
            self._replay = self._owner.policy.captured(self._step, self._owner.pool)
        self._replay()
        assert self._made is not None
        sung, read = self._made
        # The next prompt is written over this one.
        return sung[:, : lyrics.shape[1]].clone(), read[:, : text.shape[1]].clone()

    def _step(self) -> None:
        # Without a mask of its own the model looks for several texts in a row, and waits for
        # the device to learn that there are none.
        read = self._owner.text_encoder(
            input_ids=self._text, attention_mask={"full_attention": None}, use_cache=False
        )
        made = self._owner.after_text(read.last_hidden_state, self._lyrics, self._mask)
        if self._made is None:
            self._made = made[0].clone(), made[1].clone()
        for place, value in zip(self._made, made, strict=True):
            place.copy_(value)


def _visits(module: nn.Module) -> bool:
    """Whether a module comes to the device only while it is needed."""
    return getattr(module, "_hf_hook", None) is not None
