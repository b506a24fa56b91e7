"""Classifier-free guidance inside vLLM: two requests of one batch that share their scores."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality


class Guidance(LogitsProcessor):  # type: ignore[misc]
    """Mixes the scores of requests that name each other through `extra_args`.

    A conditional request has `role` 0, its unconditional one `role` 1, and both the same
    `pair` and `scale`. Both get the mixed scores and, having the same seed, choose the same
    token, so that they stay together to their end.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[int, int, float]] = {}

    def is_argmax_invariant(self) -> bool:
        """Guidance changes which token is the most probable."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they come, go and move between rows."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, _ in batch_update.added:
            self._rows.pop(row, None)
            extra = params.extra_args or {}
            if "pair" in extra:
                self._rows[row] = extra["pair"], extra["role"], extra["scale"]
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self._rows[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mix the scores `[requests, vocabulary]` of every complete pair."""
        found: dict[int, dict[int, int]] = {}
        scales: dict[int, float] = {}
        for row, (pair, role, scale) in self._rows.items():
            found.setdefault(pair, {})[role] = row
            scales[pair] = scale
        for pair, rows in found.items():
            if len(rows) == 2:
                first, second = logits[rows[0]], logits[rows[1]]
                mixed = second + scales[pair] * (first - second)
                # Forbidden tokens are -inf in both, whose difference is no number.
                mixed = mixed.masked_fill(torch.isneginf(first), -torch.inf)
                logits[rows[0]] = mixed
                logits[rows[1]] = mixed
        return logits
