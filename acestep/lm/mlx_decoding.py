"""Decoding in MLX: the rows of a batch over one cache, and how a token is chosen there.

Conditional and unconditional prompts are rows of one batch, padded at their left so that all
end together. The graph of a token is made while the device computes the one before: nothing
here waits for it, but for whoever asks for numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import BatchKVCache, KVCache

from acestep.lm.following import rows_of
from acestep.lm.prompts import Prompt
from acestep.lm.sampling import Sampling, fold

# Tokens of a prompt that are read in one forward: the scores of more would fill the memory.
_READ_AT_ONCE = 512
_WORD_BITS = 32
# A xor-multiply hash, and what spreads its columns; see `sampling.gumbel`.
_HASH, _SPREAD = 0x45D9F3B, 0x27D4EB2F

Head = Callable[[Any], Any]
"""Of hidden states `[rows, width]` to the scores of the tokens that may follow."""


class PaddedCache(BatchKVCache):
    """mlx-lm's cache of rows that begin at different columns.

    A place of padding sees itself: one that sees nothing has no sum of weights to divide by.
    """

    def make_mask(self, N: int, return_array: bool = False, **options: Any) -> Any:  # noqa: N803
        """What `N` new tokens may look at, bool `[rows, 1, N, columns]`."""
        mask = super().make_mask(N, return_array, **options)
        queries = mx.arange(self._idx, self._idx + N)[:, None]
        return mask | (queries == mx.arange(self._idx + N))


class MlxDecoding:
    """A batch that is being written.

    Args:
        body: mlx-lm's model without its head: tokens and caches to hidden states.
        head: the scores of the tokens that may follow.
        width: how many those are.
        sampling: how one is chosen.
        prompts: one for each item; read here.
        seeds: likewise.
        made: tokens of the text that the prompts hold already.
        counted: whether the prompts' tokens are of those that may follow, and count as said.
    """

    def __init__(
        self,
        body: Any,
        head: Head,
        width: int,
        sampling: Sampling,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        made: int = 0,
        counted: bool = False,
    ) -> None:
        self._body, self._head, self._width, self._sampling = body, head, width, sampling
        self._batch, self._step = len(prompts), made
        self._seeds = mx.array(fold(seeds), mx.uint32)[:, None]
        rows = rows_of(prompts, sampling)
        self._repeats = len(rows) // len(prompts)
        longest = max(len(ids) for ids in rows)
        padding = [longest - len(ids) for ids in rows]
        self._caches = [PaddedCache(padding) if any(padding) else KVCache() for _ in body.layers]
        self._said = self._penalised([ids if counted else [] for ids in rows[: self._batch]])
        self._scores: Any = None
        padded = [[0] * missing + ids for missing, ids in zip(padding, rows, strict=True)]
        self._read(np.array(padded, np.int32))

    def read(self, tokens: Sequence[Sequence[int]], made: int) -> None:
        """Go on with tokens that were chosen or are given, equally many for each item.

        Args:
            tokens: read in one forward.
            made: tokens of the text with them.
        """
        ids = np.array(tokens, np.int32)
        self._say(mx.array(ids))
        self._step = made
        self._read(np.tile(ids, (self._repeats, 1)))

    def advance(self, choice: Any, ids: Any) -> None:
        """Go on with what `choose` gave, on the device.

        Args:
            choice: `[batch]`.
            ids: the tokens of the choice.
        """
        self._say(choice[:, None])
        self._step += 1
        self._forward(mx.tile(ids[:, None], (self._repeats, 1)))

    def choose(self, masks: np.ndarray[Any, Any] | None = None) -> Any:
        """What each item goes on with, `[batch]`, columns of the head; not yet computed.

        Args:
            masks: allowed tokens, one bit each, int32 `[batch, ceil(width / 32)]`.
        """
        sampling = self._sampling
        scores = self._scores.astype(mx.float32)
        if sampling.guided:
            said, other = scores[: self._batch], scores[self._batch :]
            scores = other + sampling.guidance * (said - other)
        if masks is not None:
            scores = mx.where(_allowed(masks, self._width), scores, -mx.inf)
        if self._said is not None:
            penalty = float(sampling.repetition_penalty)
            less = mx.where(scores < 0, scores * penalty, scores / penalty)
            scores = mx.where(self._said, less, scores)
        if not sampling.greedy:
            scores = _warped(scores, sampling) + gumbel(self._seeds, self._step, self._width)
        return mx.argmax(scores, axis=-1)

    def _read(self, ids: np.ndarray[Any, Any]) -> None:
        for begin in range(0, ids.shape[1], _READ_AT_ONCE):
            self._forward(mx.array(ids[:, begin : begin + _READ_AT_ONCE]))
            if begin + _READ_AT_ONCE < ids.shape[1]:
                mx.eval([cache.state for cache in self._caches])
        mx.async_eval(self._scores)

    def _forward(self, ids: Any) -> None:
        self._scores = self._head(self._body(ids, self._caches)[:, -1])

    def _penalised(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Which tokens were said, bool `[batch, width]`; None where that does not matter."""
        if self._sampling.repetition_penalty == 1:
            return None
        said = np.zeros((self._batch, self._width), bool)
        for row, ids in zip(said, prompts, strict=True):
            row[[token for token in ids if token < self._width]] = True
        return mx.array(said)

    def _say(self, columns: Any) -> None:
        if self._said is not None:
            self._said = mx.put_along_axis(self._said, columns, mx.array(True), axis=1)


def gumbel(seeds: Any, step: int, width: int) -> Any:
    """The noise of `sampling.gumbel`, `[batch, width]`, float32; its bits are the same.

    Args:
        seeds: uint32 `[batch, 1]`.
        step: the number of the token.
        width: size of the vocabulary.
    """
    spread = mx.arange(width, dtype=mx.uint32) * mx.array(_SPREAD, mx.uint32)
    bits = _mix(_mix(seeds + _mix(mx.array([step + 1], mx.uint32))) + spread)
    uniform = ((bits >> 9).astype(mx.float32) + 0.5) / 2**23
    return -mx.log(-mx.log(uniform))


def _mix(value: Any) -> Any:
    """`sampling._mix`: products of 32 bits wrap by themselves."""
    for _ in range(2):
        value = (value ^ (value >> 16)) * mx.array(_HASH, mx.uint32)
    return value ^ (value >> 16)


def _allowed(masks: np.ndarray[Any, Any], width: int) -> Any:
    """Words of bits as bool `[batch, width]`. llguidance's own helper is a Metal kernel."""
    bits = mx.array(masks)[:, :, None] >> mx.arange(_WORD_BITS, dtype=mx.int32)
    return (bits & 1).reshape(len(masks), -1)[:, :width] == 1


def _warped(scores: Any, sampling: Sampling) -> Any:
    """As transformers' processors change scores: temperature, top-k, top-p, in this order."""
    if sampling.temperature != 1:
        scores = scores / float(sampling.temperature)
    if sampling.top_k:
        count = min(sampling.top_k, scores.shape[-1])
        least = mx.sort(scores, axis=-1)[:, -count, None]
        scores = mx.where(scores < least, -mx.inf, scores)
    if sampling.top_p is not None and sampling.top_p < 1:
        order = mx.argsort(scores, axis=-1)
        ranked = mx.take_along_axis(scores, order, axis=-1)
        reached = mx.cumsum(mx.softmax(ranked, axis=-1), axis=-1)
        # The most probable one always stays.
        last = mx.arange(ranked.shape[-1]) == ranked.shape[-1] - 1
        kept = mx.where((reached <= 1 - sampling.top_p) & ~last, -mx.inf, ranked)
        scores = mx.put_along_axis(scores, order, kept, axis=-1)
    return scores
