"""Runs what is written in Python below torch's dispatch: classes of tensors, operators of libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from conformance.simulate import operands
from conformance.simulate.core import Args, Core, Kwargs
from conformance.simulate.tracing import NotSimulatedError

_KEY = torch._C.DispatchKey.MPS
_ONLY_CALL = frozenset({"cond", "strict_mode"})
"""Higher operators that compute nothing but call what they are given, and want no mode about."""
_WANT_NO_MODE = frozenset({"scan", "invoke_subgraph"})
"""Those that compute too."""


Mode = AbstractContextManager[Any]
"""The dispatch mode that met such code, and is off while it answers."""


@contextmanager
def as_program(core: Core, mode: Mode) -> Iterator[None]:
    """A block whose code, called from within torch, is the program's: both modes are on."""
    thread = core.thread
    before = thread.target, thread.call
    thread.target = thread.call = None
    try:
        with ExitStack() as modes:
            if torch._C._is_torch_function_all_disabled():
                modes.enter_context(torch._C._EnableTorchFunction())
                modes.enter_context(torch._C.DisableTorchFunctionSubclass())
            modes.enter_context(mode)
            modes.enter_context(core.function_mode())
            yield
    finally:
        thread.target, thread.call = before


def by_class(core: Core, mode: Mode, func: Any, types: Any, args: Args, kwargs: Kwargs) -> Any:
    """Lets a tensor made of tensors answer; what it is made of comes back to the mode."""
    with as_program(core, mode):
        for kind in filter(operands.answer, types):
            out = kind.__torch_dispatch__(func, types, args, kwargs)
            if out is not NotImplemented:
                return out
    return NotImplemented


def higher(core: Core, mode: Mode, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Runs flexible attention and its like, which are one function for every device.

    Raises NotSimulatedError for those that will not run where a mode sees what they compute.
    """
    if func.name() in _WANT_NO_MODE:
        raise NotSimulatedError(f"torch's {func.name()}")
    kernel = func.py_kernels[torch._ops.resolve_key(func, _KEY)]
    if func.name() not in _ONLY_CALL:
        with as_program(core, mode):
            return kernel(*args, **kwargs)

    def within(value: Any) -> Any:
        if not callable(value):
            return value

        def call(*given: Any) -> Any:
            with as_program(core, mode):
                return value(*given)

        return call

    return kernel(*map(within, args), **kwargs)
