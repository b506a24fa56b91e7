"""Modules without storage for their parameters, made by one thread and noticed by no other.

accelerate's `init_empty_weights` exchanges a method of `nn.Module` for the whole process: what other
threads make meanwhile has no storage either, and two that load at once leave it exchanged for good.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

_thread = threading.local()


@contextmanager
def without_storage() -> Iterator[None]:
    """Parameters of modules that this thread makes meanwhile have a shape and a dtype, and are on
    the meta device; buffers are as they would be."""
    outer = _is_emptying()
    _thread.emptying = True
    try:
        yield
    finally:
        _thread.emptying = outer


def _is_emptying() -> bool:
    return getattr(_thread, "emptying", False)


# PyTorch's annotation does not know that a hook may answer with a parameter.
def _emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
    if parameter is None or parameter.is_meta or not _is_emptying():
        return None  # it stays as it is
    empty = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    vars(empty).update(vars(parameter))
    return empty


# Once, for all: another thread that makes a module meanwhile is going through these hooks.
register_module_parameter_registration_hook(_emptied)
