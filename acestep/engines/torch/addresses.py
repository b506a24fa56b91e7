"""Weights at addresses where products over them are quick, and round as they do elsewhere."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes: a cache line, and what PyTorch's own allocator on the host aligns to."""

_Module = TypeVar("_Module", bound=nn.Module)


def align(module: _Module) -> _Module:
    """Move parameters from odd addresses, where a mapped file may leave them.

    Products over those take longer, and on the host they round in another order than over the
    same weights at even ones.

    Returns:
        the module itself.
    """
    for parameter in module.parameters():
        # Elsewhere the number may be a handle, and the device's allocator knows what it needs.
        if parameter.is_cpu and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return module


def places(*modules: nn.Module) -> tuple[tuple[int, int], ...]:
    """What changes when a part of some modules is exchanged, wrapped, or its weight moves."""
    parts = [part for module in modules for part in module.modules()]
    weights = [(id(part), getattr(part, "weight", None)) for part in parts]
    return tuple((n, weight.data_ptr()) for n, weight in weights if isinstance(weight, Tensor))
