"""diffusers' VAE and the form of weight normalisation that it uses: PyTorch's warning, and its cost."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# Filters are the process's: two threads that set them side by side would leave one behind.
_filtering = threading.RLock()
_DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_)


@contextmanager
def old_weight_norm() -> Iterator[None]:
    """Build or load diffusers' VAE without the warning: its checkpoints have the old form."""
    with _filtering, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.* is deprecated", FutureWarning)
        yield


def without_copies(module: torch.nn.Module) -> torch.nn.Module:
    """The module without the normalised weights that it computed when it was made, as a loaded
    checkpoint's is: it computes them anew at each call."""
    for part in module.modules():
        direction = getattr(part, "weight_v", None)
        if isinstance(direction, torch.Tensor):
            vars(part)["weight"] = direction.new_empty(0)
    return module


class WithoutWeights(TorchFunctionMode):
    """Weight normalisation and first values of weights that have no storage: shapes alone.

    A module draws its weights and computes its normalised ones once when it is made. On the meta
    device PyTorch does so in Python, operator by operator: half the time that loading a small
    checkpoint takes.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The result's shape for weight normalisation, nothing for draws, others as they are."""
        drawn = (kwargs or {}).get("tensor") if func in _DRAWS else None
        if isinstance(drawn, torch.Tensor) and drawn.is_meta:
            return drawn
        if func is torch._weight_norm and args[0].is_meta:
            return torch.empty_like(args[0])
        if func is torch.norm_except_dim and args[0].is_meta:
            weight, _, dim = args
            return weight.new_empty([n if d == dim else 1 for d, n in enumerate(weight.shape)])
        return func(*args, **(kwargs or {}))
