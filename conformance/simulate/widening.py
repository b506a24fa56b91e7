"""Runs an operator in a wider element type where the CPU's kernel lacks one that Metal has."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree

from conformance.simulate.operators import Operator

LACKING = re.compile(r"not implemented for '(Half|BFloat16|Bool|ComplexHalf)'")
"""The CPU's words for a kernel that it lacks, and Metal may have."""
_WIDER = {
    "Half": (torch.float16, torch.float32),
    "BFloat16": (torch.bfloat16, torch.float32),
    "Bool": (torch.bool, torch.uint8),
    "ComplexHalf": (torch.complex32, torch.complex64),
}


def widened(operator: Operator, run: Callable[..., Any], args: Any, kwargs: Any, error: Any) -> Any:
    """The result in the type that the CPU's kernel lacks, computed in the next that it has.

    Raises `error`, the CPU's refusal, where it is about something else, or where the operator
    writes to its operands.
    """
    found = LACKING.search(str(error))
    if found is None or operator.written or operator.random:
        raise error
    narrow, wide = _WIDER[found.group(1)]

    def changed(before: torch.dtype, after: torch.dtype) -> Callable[[Any], Any]:
        def change(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value.to(after) if value.dtype is before else value
            return after if value is before else value

        return change

    wider, back = changed(narrow, wide), changed(wide, narrow)
    args, kwargs = _pytree.tree_map(wider, (args, kwargs))
    return _pytree.tree_map(back, run(*args, **kwargs))
