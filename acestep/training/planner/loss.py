"""Cross entropy over 65 thousand tokens, a slice of the places at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

_AT_ONCE = 4096


def linear_cross_entropy(
    hidden: torch.Tensor, table: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The mean cross entropy of `hidden @ table.T`, whose logits never exist all at once.

    Args:
        hidden: `[places, width]`.
        table: `[vocabulary, width]`.
        labels: int64 `[places]`; a negative one is passed over.
    """
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, table, labels)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made with the loss, so that each slice of logits is computed once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, table: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """See `linear_cross_entropy`."""
        known = labels >= 0
        share = known / known.sum().clamp(min=1)
        total = torch.zeros((), device=hidden.device)
        by_hidden = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        by_table = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
        for first in range(0, len(hidden), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            logits = functional.linear(hidden[part], table).float()
            label = labels[part].clamp(min=0)[:, None]
            logits -= logits.logsumexp(dim=1, keepdim=True)
            total -= (logits.gather(1, label)[:, 0] * share[part]).sum()
            gradient = logits.exp_()
            gradient.scatter_add_(1, label, torch.full_like(label, -1.0, dtype=torch.float32))
            gradient *= share[part][:, None]
            gradient = gradient.to(hidden.dtype)
            by_hidden[part] = gradient @ table.to(hidden.dtype)
            by_table += gradient.T @ hidden[part]
        ctx.save_for_backward(by_hidden, by_table)
        ctx.dtypes = hidden.dtype, table.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """The stored gradients, scaled."""
        by_hidden, by_table = ctx.saved_tensors
        of_hidden, of_table = ctx.dtypes
        (scale,) = gradients
        return (by_hidden * scale).to(of_hidden), (by_table * scale).to(of_table), None
