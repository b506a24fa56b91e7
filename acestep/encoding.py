"""Words to the transformer's condition, recorded where launching costs more than computing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from acestep.device import DevicePolicy
from acestep.offloading import bring

TEXT_ROOM = 64
LYRICS_ROOM = 128
"""Recordings have room for a multiple of this many tokens."""

MAX_RECORDINGS = 4


class PromptEncoder:
    """Encodes one prompt with the text encoder and the condition encoder of a pipeline.

    Args:
        pipeline: its `text_encoder` and `condition_encoder` are used where they are.
        policy: its device; where it records, the launches of an encoding are replayed.
    """

    def __init__(self, pipeline: Any, policy: DevicePolicy) -> None:
        self.text_encoder = pipeline.text_encoder
        self.condition_encoder = pipeline.condition_encoder
        self.policy = policy
        self._recordings: OrderedDict[tuple[int, int], _Recording] = OrderedDict()

    def __call__(self, text: torch.Tensor, lyrics: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Encoded lyrics and text, each `[1, tokens, width]`.

        Args:
            text: token ids of the description, `[1, tokens]` on the host.
            lyrics: token ids of the lyrics, likewise.
        """
        if not self.policy.records or hasattr(self.text_encoder, "_hf_hook"):
            device = self.policy.device
            mask = torch.ones_like(lyrics, dtype=torch.bool).to(device)
            return self._encode(text.to(device), lyrics.to(device), mask)
        key = (_rooms(text.shape[1], TEXT_ROOM), _rooms(lyrics.shape[1], LYRICS_ROOM))
        if key not in self._recordings:
            if len(self._recordings) >= MAX_RECORDINGS:
                self._recordings.popitem(last=False)
            self._recordings[key] = _Recording(*key, self._encode, self.policy)
        self._recordings.move_to_end(key)
        return self._recordings[key](text, lyrics)

    def _encode(
        self, text: torch.Tensor, lyrics: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        read = self.text_encoder(input_ids=text, use_cache=False).last_hidden_state
        # Lyrics are only looked up; what they mean together is the lyric encoder's business.
        words = self.text_encoder.get_input_embeddings()(lyrics)
        bring(self.condition_encoder)
        sung = self.condition_encoder.lyric_encoder(inputs_embeds=words, attention_mask=mask)
        return sung, self.condition_encoder.text_projector(read)


class _Recording:
    """One encoding with room for a number of tokens.

    What lies behind a text is never seen by it, for the text encoder is causal; what lies
    behind lyrics is masked.
    """

    def __init__(
        self,
        text_room: int,
        lyrics_room: int,
        encode: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        policy: DevicePolicy,
    ) -> None:
        def zeros(room: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(1, room, dtype=dtype, device=policy.device)

        self._text, self._lyrics = zeros(text_room, torch.long), zeros(lyrics_room, torch.long)
        self._mask = zeros(lyrics_room, torch.bool)
        self._mask[:, 0] = True
        self._made: tuple[torch.Tensor, ...] = ()

        def step() -> None:
            self._made = encode(self._text, self._lyrics, self._mask)

        self._replay = policy.captured(step)

    def __call__(self, text: torch.Tensor, lyrics: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._text[:, : text.shape[1]].copy_(text)
        self._lyrics[:, : lyrics.shape[1]].copy_(lyrics)
        self._mask.fill_(False)
        self._mask[:, : lyrics.shape[1]] = True
        self._replay()
        sung, read = self._made
        return sung[:, : lyrics.shape[1]].clone(), read[:, : text.shape[1]].clone()


def _rooms(tokens: int, room: int) -> int:
    return -(-tokens // room) * room
