"""Weights at addresses where products over them are quick, and round as they do elsewhere."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

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
