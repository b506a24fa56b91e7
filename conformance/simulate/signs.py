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
    function_mode_at,
    no_function_modes,
    other_function_modes,
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
    calls = core.calls

    def sign(*args: Any, **kwargs: Any) -> Any:
        known = calls.get(func)
        if (
            not known
            or kwargs
            or other_function_modes() != 1
            or type(function_mode_at(0)) is not FunctionMode
        ):
            return plain(*args, **kwargs)
        # A guard of C++'s own: a signal's handler that raises finds no moment without the mode.
        with no_function_modes():
            try:
                made = direct.met(core, known, func, args)
            except TypeError:
                # As torch has it: Python asks the other operand, and then says what it thinks.
                return NotImplemented
        return plain(*args) if made is None else made

    sign.__name__, sign.__qualname__, sign.__doc__ = (
        plain.__name__,
        plain.__qualname__,
        plain.__doc__,
    )
    return sign
