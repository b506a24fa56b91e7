"""Runs a call of torch's that is known to meet nothing to check, and asks no more.

The first call of a function on operands of given types goes through both modes. Where it was one
operator of the same name, whose kernel was run whole, the next such call runs torch's own function
with the dispatch mode left out: what that would find is known, except for what comes out. A call
that came to several operators, or to one of another name, is known by the shapes and values of its
arguments too (`parts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch.autograd import forward_ad

from conformance.simulate import checks, parts
from conformance.simulate.core import Args, Core, Kinds, Known, Kwargs, tensors_in
from conformance.simulate.internals import (
    NAMES,
    bare,
    dispatch_modes,
    functorch,
    other_function_modes,
    records_gradients,
    saving_hooks,
    storage_id,
)
from conformance.simulate.operators import Operator
from conformance.simulate.parts import PLAIN

Slow = Callable[[Core, Any, Args, Kwargs], Any]

_VALUES = (bool, str, torch.dtype, torch.layout, torch.memory_format)
"""Arguments by whose value another operator may be chosen; others are told by their type."""
_ELSEWHERE = frozenset({"device", "out", "pin_memory", "generator", "layout"})
_MOST_BYTES = 2**28
"""Above it an operand may be longer than MPSGraph's arrays, which is looked at each time."""
_Tensor, _Parameter, _FLOAT32 = torch.Tensor, torch.nn.Parameter, torch.float32
_EMPTY, _WATCHED = object(), object()
"""What follows a tensor's type and dimensions in a key, where it has no elements, or gradients."""
_NOTHING: Kwargs = {}
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
_IN_PYTHON = frozenset(
    {"pow", "relu", "silu", "leaky_relu", "softmax", "log_softmax", "__rsub__", "einsum"}
    | {"layer_norm", "group_norm", "mse_loss", "cross_entropy", "normalize"}
)
"""Functions written in Python that come to the same operators whatever the values."""


def _kinds(blocks: Container[int], values: Iterable[Any], recording: bool) -> Kinds | None:
    """What of a call's arguments decides its operators; None where they are out of the ordinary."""
    kinds: list[Any] = [recording]
    for value in values:
        kind = type(value)
        if kind is _Tensor or kind is _Parameter:
            nbytes = value.nbytes
            # The address fails for layouts without a storage, and for functorch's wrappers.
            if storage_id(value) not in blocks or nbytes > _MOST_BYTES:
                return None
            kinds += value.dtype, value.ndim
            if not nbytes:
                kinds.append(_EMPTY)
            if recording and value.requires_grad:
                kinds.append(_WATCHED)
        elif kind is int or kind is float:
            kinds.append(kind)
        elif kind is list or kind is tuple or kind is torch.Size:
            inner = _kinds(blocks, value, recording)
            if inner is None:
                return None
            kinds.append(inner)
        elif isinstance(value, torch.Tensor):
            return None
        else:
            kinds.append(value if value is None or isinstance(value, _VALUES) else kind)
    return tuple(kinds)


def _others_listen(core: Core) -> bool:
    """Whether anything else on this thread has a say in a call."""
    return (
        dispatch_modes() != 1
        or other_function_modes() > 0
        or (core.autocasts and bool(core.thread.autocast))
        or saving_hooks(False) is not None
        or functorch()
        or forward_ad._current_level >= 0
        or bool(core.traces)
    )


def _key(core: Core, args: Args, kwargs: Kwargs) -> Kinds | None:
    """The kinds of a call's arguments, where they can be told."""
    blocks = core.ledger.blocks
    try:
        if not kwargs:
            return _kinds(blocks, args, records_gradients())
        if not _ELSEWHERE.isdisjoint(kwargs):
            return None
        recording = records_gradients()
        placed = _kinds(blocks, args, recording)
        named = _kinds(blocks, kwargs.values(), recording)
        return None if placed is None or named is None else (*placed, *kwargs, named)
    except (RuntimeError, NotImplementedError):
        return None


def alone(core: Core, tensor: torch.Tensor) -> bool:
    """Whether a call on this tensor of the device concerns nobody but the simulation."""
    return not _others_listen(core) and _key(core, (tensor,), {}) is not None


def run(core: Core, known: Known, slow: Slow, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`func(*args, **kwargs)`, straight where `known` has met such arguments, else by `slow`."""
    if _others_listen(core):
        return slow(core, func, args, kwargs)
    # A function that never was one operator is looked up by its parts alone.
    found = known.get(_key(core, args, kwargs) or ()) if known else None
    if found is not None:
        return _straight(core, *found, slow, func, args, kwargs)
    run_before = core.sequences.get(func)
    if run_before is not None:
        exact = parts.key(core, func, args, kwargs)
        plan = None if exact is None else run_before.get(exact)
        if plan is not None:
            names, surge = plan
            if not core.ledger.fits(surge):
                return slow(core, func, args, kwargs)
            return _in_parts(core, names, slow, func, args, kwargs)
    return first(core, slow, func, args, kwargs)


def met(core: Core, known: Known, func: Any, args: Args) -> Any:
    """`func(*args)` straight, where it is one of `known` on nothing but tensors and numbers; else None.

    The way of nearly all calls, and so in one piece: as `run`, with nothing else to be looked at.
    """
    if (
        dispatch_modes() != 1
        or (core.autocasts and core.thread.autocast)
        or functorch()
        or forward_ad._current_level >= 0
        or core.traces
    ):
        return None
    recording, watched = records_gradients(), False
    key: Kinds = (recording,)
    ledger = core.ledger
    blocks = ledger.blocks
    try:
        for value in args:
            kind = type(value)
            if kind is _Tensor or kind is _Parameter:
                if storage_id(value) not in blocks or not 0 < value.nbytes <= _MOST_BYTES:
                    return None
                key += (value.dtype, value.ndim)
                if recording and value.requires_grad:
                    watched = True
                    key += (_WATCHED,)
            elif kind is int or kind is float:
                key += (kind,)
            else:
                return None
    except (RuntimeError, NotImplementedError):
        return None
    found = known.get(key)
    if found is None or (watched and saving_hooks(False) is not None):
        return None
    operator, alone = found
    try:
        if alone:
            out = bare(func, (), args, _NOTHING)
        else:
            with core.thread.straight:
                out = func(*args)
    except (NotImplementedError, RuntimeError):
        if operator.written:
            raise
        # Perhaps for want of a kernel in this type, which a wider one stands in for.
        return None
    core.counts[operator.name] += 1
    if alone and type(out) is _Tensor:
        storage = out.untyped_storage()
        if not ledger.takes(storage):
            core.thread.operator = operator
            ledger.mark_storage(storage)
        return out
    return _marked(core, operator, out)


def whole(core: Core, operator: Operator, slow: Slow, func: Any, args: Args) -> Any:
    """`func(*args)` as one operator of the device, where its operands are all there, else `slow`.

    Whatever its parts make and autograd may keep must be a view of an operand or of the result.
    """
    if _others_listen(core) or _key(core, args, {}) is None:
        return slow(core, func, args, {})
    return _straight(core, operator, False, slow, func, args, {})


def _straight(
    core: Core, operator: Operator, alone: bool, slow: Slow, func: Any, args: Args, kwargs: Kwargs
) -> Any:
    """Runs a known call; `alone` where nothing but the kernel has a say in it."""
    try:
        if alone:
            out = bare(func, (), args, kwargs)
        else:
            with core.thread.straight:
                out = func(*args, **kwargs) if kwargs else func(*args)
    except (NotImplementedError, RuntimeError):
        if operator.written:
            raise
        # Perhaps for want of a kernel in this type, which a wider one stands in for.
        return slow(core, func, args, kwargs)
    core.counts[operator.name] += 1
    return _marked(core, operator, out)


def _marked(core: Core, operator: Any, out: Any) -> Any:
    """Puts on the device what `operator` made."""
    ledger = core.ledger
    for tensor in (out,) if isinstance(out, torch.Tensor) else out:
        if storage_id(tensor) not in ledger.blocks:
            # Torch's default type, which numbers take, may have changed since.
            if tensor.dtype is not _FLOAT32:
                core.thread.operator = operator
                checks.check_dtype(tensor.dtype, core.machine)
            storage = tensor.untyped_storage()
            if not ledger.takes(storage):
                core.thread.operator = operator
                ledger.mark_storage(storage)
    return out


def _in_parts(
    core: Core, names: tuple[str, ...], slow: Slow, func: Any, args: Args, kwargs: Kwargs
) -> Any:
    """The call again whose operators were these, none of which writes to an operand."""
    try:
        with core.thread.straight:
            out = func(*args, **kwargs)
    except (NotImplementedError, RuntimeError):
        return slow(core, func, args, kwargs)
    counts = core.counts
    for name in names:
        counts[name] += 1
    return _marked(core, func, out)


def first(core: Core, slow: Slow, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`func(*args, **kwargs)` by `slow`, from which this learns if there is anything to learn."""
    if core.tries.get(func, 0) > _TRIES or _others_listen(core):
        return slow(core, func, args, kwargs)
    key = _key(core, args, kwargs)
    # A slice is of no kind, and yet an index of slices may be known by its values.
    named = getattr(func, "__name__", "")
    sliced = named in parts.VIEWS and parts.key(core, func, args, kwargs) is not None
    if key is None and not sliced:
        return slow(core, func, args, kwargs)
    return _learn(core, slow, func, args, kwargs, key)


def _learn(core: Core, slow: Slow, func: Any, args: Args, kwargs: Kwargs, key: Kinds | None) -> Any:
    """Runs the call by both modes, and notes the operator if it was one."""
    if not _may_be_one(func):
        core.tries[func] = _TRIES + 1
        return slow(core, func, args, kwargs)
    core.tries[func] = core.tries.get(func, 0) + 1
    thread = core.thread
    before, thread.trace = thread.trace, []
    try:
        with core.ledger.surge() as surge:
            out = slow(core, func, args, kwargs)
        trace = thread.trace
    finally:
        thread.trace = before
    operator = trace[0] if len(trace) == 1 else None
    name = func.__name__
    if (
        operator is not None
        and key is not None
        and operator.base.removeprefix("aten::") == _ALIASES.get(name, name)
        and _real(key)
        and _only_tensors(out, operator.results)
    ):
        core.calls.setdefault(func, {})[key] = (
            operator,
            _kernel_alone(core, operator, args, kwargs, out),
        )
        core.tries[func] = 0
    elif parts.learned(core, func, args, kwargs, trace, surge[0], out):
        core.calls.setdefault(func, {})
        core.tries[func] = 0
    return out


def _kernel_alone(core: Core, operator: Operator, args: Args, kwargs: Kwargs, out: Any) -> bool:
    """Whether nothing above the kernel has a say in a call: autograd, names, what is a view.

    Nor torch's default type, which the result has where no operand is a tensor of real numbers.
    """
    given, made = tensors_in(args, kwargs), tensors_in((out,), {})
    kept = records_gradients() and any(tensor.requires_grad for tensor in given)
    lying = {storage_id(tensor) for tensor in given}
    views = operator.aliases or any(storage_id(tensor) in lying for tensor in made)
    floating = any(tensor.is_floating_point() for tensor in given)
    default = not floating and any(tensor.is_floating_point() for tensor in made)
    return not (operator.implicit or views or kept or default or NAMES or core.negated)


def _may_be_one(func: Any) -> bool:
    if isinstance(func, FunctionType):
        return func.__name__ in _IN_PYTHON and func.__module__.startswith("torch.")
    return isinstance(func, (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType))


def _real(key: Kinds) -> bool:
    """Whether no operand is complex: those may carry a conjugation, to be resolved by itself."""
    return all(
        _real(kind) if isinstance(kind, tuple) else not getattr(kind, "is_complex", False)
        for kind in key
    )


def _only_tensors(out: Any, count: int) -> bool:
    """Whether all that the operator made came out: what autograd keeps besides would be the host's."""
    several = out if isinstance(out, (tuple, list)) else (out,)
    return len(several) == count and all(type(tensor) in PLAIN for tensor in several)
