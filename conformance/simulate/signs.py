"""Answers `x + y` and its like without a function mode, where such operands were met before.

Torch names such a call by its method (`Tensor.add`), so that nobody whose table is asked with what
torch names can tell that the sign itself was replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from conformance.simulate import direct
from conformance.simulate.core import Core
from conformance.simulate.functions import FunctionMode
from conformance.simulate.internals import (
    other_function_modes,
    pop_function_mode,
    push_function_mode,
)
from conformance.simulate.patching import Patches

SIGNS = {
    "__add__": "add",
    "__radd__": "add",
    "__sub__": "sub",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__truediv__": "div",
    "__mod__": "remainder",
    "__neg__": "neg",
    "__matmul__": "matmul",
    "__lt__": "lt",
    "__le__": "le",
    "__gt__": "gt",
    "__ge__": "ge",
}
"""The method that torch takes a sign for."""


def install(patches: Patches, core: Core) -> None:
    """Replaces them until `patches.undo`."""
    for sign, method in SIGNS.items():
        patches.set(
            torch.Tensor,
            sign,
            _asking(core, getattr(torch.Tensor, sign), getattr(torch.Tensor, method)),
        )


def _asking(core: Core, plain: Any, func: Any) -> Callable[..., Any]:
    known = core.calls.setdefault(func, {})
    ours = FunctionMode(core)

    def sign(*args: Any, **kwargs: Any) -> Any:
        if not known or kwargs or other_function_modes() != 1:
            return plain(*args, **kwargs)
        mode: object = ours
        try:
            # A signal's handler is called after a call at the soonest: one that raises here finds
            # that a mode is missing, if not yet which; and what this thread has is ours.
            mode = pop_function_mode()
            made = direct.met(core, known, func, args) if type(mode) is FunctionMode else None
        except TypeError:
            # As torch has it: Python asks the other operand, and then says what it thinks.
            return NotImplemented
        finally:
            push_function_mode(mode)
        return plain(*args) if made is None else made

    sign.__name__, sign.__qualname__, sign.__doc__ = (
        plain.__name__,
        plain.__qualname__,
        plain.__doc__,
    )
    return sign
