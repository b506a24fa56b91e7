"""Attention of the diffusion transformer without the work its masks throw away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

BLOCK = 128
"""Queries that share a stretch of keys in a windowed layer."""

BAND_FACTOR = 3
"""A sequence this many times as long as a block's keys is cut into blocks; below that one
dense product costs less than the cutting."""


class Attention(Protocol):
    """How one request's attention is computed.

    Queries are `[batch, tokens, heads, head_dim]`, keys and values
    `[batch, tokens, kv_heads, head_dim]`; the result is `[batch, tokens, heads * head_dim]`.
    """

    def full(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Every token attends to every token."""

    def windowed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Every token attends to the tokens at most a window away."""

    def cross(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Every token attends to the whole condition."""


class SdpaAttention:
    """Attention by `scaled_dot_product_attention`, on any device and in any dtype.

    Query heads that share a key head become rows of one product, so that keys and values are
    not copied for each of them. In windowed layers a long sequence is cut into blocks, each of
    which sees only the keys within its reach.

    Args:
        tokens: length of the sequence.
        window: greatest distance at which tokens of a windowed layer see each other.
        groups: query heads that share a key head.
        like: a tensor of the device and dtype in use.
    """

    def __init__(self, tokens: int, window: int, groups: int, like: torch.Tensor) -> None:
        self.tokens, self.window, self.groups = tokens, window, groups
        self.blocks = -(-tokens // BLOCK)
        self.reach = BLOCK + 2 * window
        self.banded = tokens > BAND_FACTOR * self.reach // 2
        self._mask = None if tokens <= window + 1 else self._make_mask(like)

    def full(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self._attend(query, key, value, None)

    def cross(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self._attend(query, key, value, None)

    def windowed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if self._mask is None or not self.banded:
            return self._attend(query, key, value, self._mask)
        rest = self.blocks * BLOCK - self.tokens
        query = F.pad(query, (0, 0, 0, 0, 0, rest))
        made = self._attend(
            query.view(-1, BLOCK, *query.shape[2:]),
            self._windows(key, rest),
            self._windows(value, rest),
            self._mask,
        )
        return made.view(-1, self.blocks * BLOCK, made.shape[-1])[:, : self.tokens]

    def _windows(self, rows: torch.Tensor, rest: int) -> torch.Tensor:
        """Each block's keys or values, `[batch * blocks, reach, kv_heads, head_dim]`."""
        padded = F.pad(rows, (0, 0, 0, 0, self.window, rest + self.window))
        return padded.unfold(1, self.reach, BLOCK).movedim(-1, 2).flatten(0, 1)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = query.shape[1]
        # [batch, tokens, kv_heads, group, dim] -> [batch, kv_heads, group * tokens, dim]
        grouped = torch.unflatten(query, 2, (-1, self.groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        made = F.scaled_dot_product_attention(
            grouped, key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
        )
        return torch.unflatten(made, 2, (self.groups, rows)).permute(0, 3, 1, 2, 4).flatten(2)

    def _make_mask(self, like: torch.Tensor) -> torch.Tensor:
        """Additive, `[blocks or 1, 1, groups * rows, keys]`: 0 within reach, else the lowest."""
        if self.banded:
            first = torch.arange(self.blocks)[:, None, None] * BLOCK
            rows = first + torch.arange(BLOCK)[:, None]
            keys = first + torch.arange(self.reach)[None, :] - self.window
        else:
            rows = torch.arange(self.tokens)[None, :, None]
            keys = torch.arange(self.tokens)[None, None, :]
        seen = ((rows - keys).abs() <= self.window) & (keys >= 0) & (keys < self.tokens)
        mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(like.dtype).min)
        mask = mask[:, None].repeat(1, 1, self.groups, 1)
        # One block's rows for every item of the batch come one after the other.
        batch = like.shape[0] if self.banded else 1
        return mask.repeat(batch, 1, 1, 1).to(like.device, like.dtype)


@dataclass(frozen=True)
class PackedAttention:
    """Attention by the flash kernel for packed sequences, which skips what a window masks.

    All items lie in buffers of one length, so that one recorded graph serves every song that
    fits; lengths are data on the device. The rest of an item's buffer is a sequence of its
    own: it sees nothing of the song, and the song nothing of it.

    Attributes:
        starts: where sequences start in the packed tokens, `[2 * batch + 1]`, int32.
        condition_starts: the same in the packed condition.
        longest: length of an item's buffer, in tokens.
        longest_condition: length of an item's condition buffer, in tokens.
        window: greatest distance at which tokens of a windowed layer see each other.
    """

    starts: torch.Tensor
    condition_starts: torch.Tensor
    longest: int
    longest_condition: int
    window: int

    def full(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self._attend(query, key, value, self.starts, self.longest, -1)

    def windowed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self._attend(query, key, value, self.starts, self.longest, self.window)

    def cross(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        starts, longest = self.condition_starts, self.longest_condition
        return self._attend(query, key, value, starts, longest, -1)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_starts: torch.Tensor,
        longest_key: int,
        window: int,
    ) -> torch.Tensor:
        # The public `varlen_attn` over this operator has taken windows only in some releases.
        made = torch.ops.aten._flash_attention_forward(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            self.starts,
            key_starts,
            self.longest,
            longest_key,
            0.0,
            False,
            False,
            scale=query.shape[-1] ** -0.5,
            window_size_left=window,
            window_size_right=window,
        )
        packed: torch.Tensor = made[0]
        return packed.view(query.shape[0], query.shape[1], -1)


def packed_starts(length: int, room: int, batch: int) -> list[int]:
    """Where sequences start when each of `batch` items fills `length` of its `room` tokens."""
    return [at for item in range(batch) for at in (item * room, item * room + length)] + [
        batch * room
    ]
