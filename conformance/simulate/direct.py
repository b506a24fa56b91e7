"""Runs a call of torch's that is known to be one operator with nothing to check, and asks no more.

The first call of a function on operands of given types goes through both modes. Where it was one
operator of the same name, whose kernel was run whole, the next such call runs torch's own function
with the dispatch mode left out: what that would find is known, except for what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType
from typing import Any

import torch
from torch.autograd import forward_ad

from conformance.simulate import checks
from conformance.simulate.core import Args, Core, Kwargs
from conformance.simulate.internals import (
    dispatch_modes,
    other_function_modes,
    records_gradients,
    saving_hooks,
    storage_id,
)
from conformance.simulate.operators import Operator

Calls = dict[tuple[Any, ...], Operator]
Slow = Callable[[Core, Any, Args, Kwargs], Any]

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
"""Classes without answers of their own."""
_VALUES = (bool, str, torch.dtype, torch.layout, torch.memory_format)
"""Arguments by whose value another operator may be chosen; others are told by their type."""
_ELSEWHERE = frozenset({"device", "out", "pin_memory", "generator", "layout"})
_MOST_ELEMENTS = 2**28
"""Above it an operand may be longer than MPSGraph's arrays, which is looked at each time."""
_TRIES = 16
"""Calls in vain after which a function is taken for one that is never a single operator."""
_ALIASES = {
    "__eq__": "eq",
    "__ne__": "ne",
    "__rsub__": "rsub",
    "softmax": "_softmax",
    "log_softmax": "_log_softmax",
}
"""Functions that are one operator of another name, whatever the sizes."""
_IN_PYTHON = frozenset({"pow", "relu", "silu", "leaky_relu", "softmax", "log_softmax", "__rsub__"})
"""Functions written in Python that come to the same operator whatever the values."""


def _kinds(blocks: dict[int, Any], values: Any) -> tuple[Any, ...] | None:
    """What of a call's arguments decides its operators; None where they are out of the ordinary."""
    kinds: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            # Fails for layouts without a storage, and for functorch's wrappers.
            if storage_id(value) not in blocks:
                return None
            elements = value.numel()
            if elements > _MOST_ELEMENTS:
                return None
            kinds += value.dtype, value.dim(), not elements, value.requires_grad
        elif kind is int or kind is float:
            kinds.append(kind)
        elif kind is list or kind is tuple:
            inner = _kinds(blocks, value)
            if inner is None:
                return None
            kinds.append(inner)
        elif isinstance(value, torch.Tensor):
            return None
        else:
            kinds.append(value if value is None or isinstance(value, _VALUES) else kind)
    return tuple(kinds)


def _key(core: Core, args: Args, kwargs: Kwargs) -> tuple[Any, ...] | None:
    """The kinds of a call's arguments, where nothing else on this thread has a say in it."""
    if (
        dispatch_modes() != 1
        or other_function_modes()
        or core.thread.autocast
        or saving_hooks(False) is not None
        or forward_ad._current_level >= 0
    ):
        return None
    blocks = core.ledger.blocks
    try:
        if not kwargs:
            kinds = _kinds(blocks, args)
            return kinds and (records_gradients(), *kinds)
        if not _ELSEWHERE.isdisjoint(kwargs):
            return None
        placed, named = _kinds(blocks, args), _kinds(blocks, kwargs.values())
        return (
            None
            if placed is None or named is None
            else (records_gradients(), *placed, *kwargs, named)
        )
    except (RuntimeError, NotImplementedError):
        return None


def alone(core: Core, tensor: torch.Tensor) -> bool:
    """Whether a call on this tensor of the device concerns nobody but the simulation."""
    return _key(core, (tensor,), {}) is not None


def run(core: Core, known: Calls, slow: Slow, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`func(*args, **kwargs)`, straight where `known` has met such arguments, else by `slow`."""
    key = _key(core, args, kwargs)
    if key is None:
        return slow(core, func, args, kwargs)
    operator = known.get(key)
    if operator is None:
        return _learn(core, slow, func, args, kwargs, key)
    return _straight(core, operator, slow, func, args, kwargs)


def whole(core: Core, operator: Operator, slow: Slow, func: Any, args: Args) -> Any:
    """`func(*args)` as one operator of the device, where its operands are all there, else `slow`.

    Whatever its parts make and autograd may keep must be a view of an operand or of the result.
    """
    if _key(core, args, {}) is None:
        return slow(core, func, args, {})
    return _straight(core, operator, slow, func, args, {})


def _straight(
    core: Core, operator: Operator, slow: Slow, func: Any, args: Args, kwargs: Kwargs
) -> Any:
    try:
        with core.thread.straight:
            out = func(*args, **kwargs) if kwargs else func(*args)
    except (NotImplementedError, RuntimeError):
        if operator.written:
            raise
        # Perhaps for want of a kernel in this type, which a wider one stands in for.
        return slow(core, func, args, kwargs)
    core.recorder.operators[operator.name] += 1
    blocks = core.ledger.blocks
    for tensor in (out,) if isinstance(out, torch.Tensor) else out:
        address = storage_id(tensor)
        if address not in blocks:
            core.thread.operator = operator
            # Torch's default type, which numbers take, may have changed since.
            if tensor.dtype is not torch.float32:
                checks.check_dtype(tensor.dtype, core.machine)
            core.ledger.mark_fresh(tensor, address)
    return out


def first(core: Core, slow: Slow, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`func(*args, **kwargs)` by `slow`, from which this learns if there is anything to learn."""
    if core.tries.get(func, 0) > _TRIES:
        return slow(core, func, args, kwargs)
    key = _key(core, args, kwargs)
    if key is None:
        return slow(core, func, args, kwargs)
    return _learn(core, slow, func, args, kwargs, key)


def _learn(
    core: Core, slow: Slow, func: Any, args: Args, kwargs: Kwargs, key: tuple[Any, ...]
) -> Any:
    """Runs the call by both modes, and notes the operator if it was one."""
    if not _may_be_one(func):
        core.tries[func] = _TRIES + 1
        return slow(core, func, args, kwargs)
    core.tries[func] = core.tries.get(func, 0) + 1
    thread = core.thread
    before, thread.trace = thread.trace, []
    try:
        out = slow(core, func, args, kwargs)
        trace = thread.trace
    finally:
        thread.trace = before
    operator = trace[0] if len(trace) == 1 else None
    name = func.__name__
    if (
        operator is not None
        and operator.base.removeprefix("aten::") == _ALIASES.get(name, name)
        and _real(key)
        and _only_tensors(out, operator.results)
    ):
        core.calls.setdefault(func, {})[key] = operator
        core.tries[func] = 0
    return out


def _may_be_one(func: Any) -> bool:
    if isinstance(func, FunctionType):
        return func.__name__ in _IN_PYTHON and func.__module__.startswith("torch.")
    return isinstance(func, (BuiltinFunctionType, MethodDescriptorType))


def _real(key: tuple[Any, ...]) -> bool:
    """Whether no operand is complex: those may carry a conjugation, to be resolved by itself."""
    return all(
        _real(kind) if isinstance(kind, tuple) else not getattr(kind, "is_complex", False)
        for kind in key
    )


def _only_tensors(out: Any, count: int) -> bool:
    """Whether all that the operator made came out: what autograd keeps besides would be the host's."""
    several = out if isinstance(out, (tuple, list)) else (out,)
    return len(several) == count and all(type(tensor) in _PLAIN for tensor in several)
