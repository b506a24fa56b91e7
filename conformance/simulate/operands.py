"""What is asked of an operator's operands: their layout, their size, and a generator among them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from conformance.simulate.core import Args, Kwargs


@functools.cache
def answer(kind: type) -> bool:
    """Whether tensors of this class answer operators themselves; tracers' leave that to a mode."""
    own = getattr(kind, "__torch_dispatch__", torch._C._disabled_torch_dispatch_impl)
    traced = kind.__module__.startswith("torch._subclasses.")
    return own is not torch._C._disabled_torch_dispatch_impl and not traced


def generator(args: Args, kwargs: Kwargs) -> torch._C.Generator | None:
    """The generator among the arguments, if any."""
    values = (*args, *kwargs.values())
    return next((value for value in values if isinstance(value, torch._C.Generator)), None)


def layout(tensors: list[torch.Tensor], kwargs: Kwargs) -> torch.layout:
    """Whose kernels dispatch takes: a layout asked for, or the first that is not strided."""
    asked: torch.layout | None = kwargs.get("layout")
    layouts = [tensor.layout for tensor in tensors]
    if asked is not None:
        layouts.insert(0, asked)
    return next((layout for layout in layouts if layout is not torch.strided), torch.strided)


def nbytes(tensors: list[torch.Tensor]) -> int:
    """The bytes of all their elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def planned(shape: Sequence[int], dtype: torch.dtype | None) -> int:
    """Bytes that an empty tensor of this shape will take."""
    total = (dtype or torch.get_default_dtype()).itemsize
    for size in shape:
        total *= size
    return total
