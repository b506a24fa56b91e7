"""Autocast for the simulated device, over the CPU's autocast and MPS's lists of functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from conformance.simulate.device import BACKEND, HOST

if TYPE_CHECKING:
    from conformance.simulate.dispatch import Args, Core, Kwargs

_FLOAT32_NAMES = [
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow",
    "prod",
    "cumprod",
    "cumsum",
    "sum",
    "dist",
    "renorm",
    "logsumexp",
    "norm",
    "cdist",
    "softmax",
    "log_softmax",
    "__pow__",
    "__rpow__",
    "layer_norm",
    "group_norm",
    "softplus",
    "softmin",
    "gelu_",
    "cosine_similarity",
    "poisson_nll_loss",
    "nll_loss",
    "cosine_embedding_loss",
    "hinge_embedding_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "cross_entropy",
    "margin_ranking_loss",
    "multilabel_margin_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "multi_margin_loss",
    "binary_cross_entropy_with_logits",
    "pdist",
]

FLOAT32 = frozenset(
    getattr(owner, name)
    for name in _FLOAT32_NAMES
    for owner in (torch, torch.Tensor, functional)
    if hasattr(owner, name)
)
"""Functions that autocast runs in float32 on MPS.

From the operators with a kernel for the AutocastMPS key in pytorch/pytorch
aten/src/ATen/autocast_mode.cpp whose policy there is fp32.
"""


def active() -> bool:
    """Whether `torch.autocast("mps")` is on in this thread."""
    return torch.is_autocast_enabled(BACKEND)


def _widened(core: Core, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        low = value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if low and core.ledger.holds(value) else value
    if isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value):
        return type(value)(_widened(core, item) for item in value)
    return value


def run(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Calls `func` as autocast would on MPS: its float32 list first, the rest as on the CPU.

    Matrix products and convolutions inside composites are lowered by the CPU's own autocast. Calls
    with no operand on the device run as they are.
    """
    from conformance.simulate.dispatch import tensors_in

    if not any(core.ledger.holds(tensor) for tensor in tensors_in(args, kwargs)):
        return func(*args, **kwargs)
    if func in FLOAT32:
        args = tuple(_widened(core, value) for value in args)
        kwargs = {name: _widened(core, value) for name, value in kwargs.items()}
        return func(*args, **kwargs)
    dtype = torch.get_autocast_dtype(BACKEND)
    cached = torch.is_autocast_cache_enabled()
    with torch.autocast(HOST.type, dtype=dtype, cache_enabled=cached):
        return func(*args, **kwargs)
