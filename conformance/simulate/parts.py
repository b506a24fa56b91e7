"""What is known of calls that come to several operators: which, for arguments exactly like these.

Such a call may be run straight only where autograd keeps nothing of it: the parts' own results
would be the host's. An index of numbers makes views alone, of which it keeps only sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch

from conformance.simulate.core import Args, Core, Kwargs
from conformance.simulate.internals import records_gradients, storage_id
from conformance.simulate.operators import Operator

Exact = tuple[Any, ...]

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
"""Classes without answers of their own."""

_VALUES = frozenset(
    {int, float, bool, str, type(None), type(Ellipsis), torch.dtype, torch.layout}
    | {torch.memory_format, torch.Size}
)
"""Arguments that are what they say: one of the same type and value chooses the same operators."""
VIEWS = frozenset({"__getitem__"})
"""Functions that only make views, where no argument after the first is a tensor."""
_MOST_ELEMENTS = 2**18
"""Above it the kernels take the time, and what the parts make between them counts as memory."""
_MOST_KNOWN = 4096
"""So many calls of one function are kept; a function with more has no usual ones."""


class _UnlikeError(Exception):
    """Arguments of which nothing can be said beforehand."""


def key(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Exact | None:
    """All that chooses a call's operators; None where that is not to be told."""
    views = func.__name__ in VIEWS
    recording = records_gradients()
    found: list[Any] = [recording, torch.get_default_dtype()]
    try:
        if views:
            _tensor(core, args[0], False, found)
            _values(core, args[1:], None, found)
        else:
            _values(core, args, recording, found)
        if kwargs:
            found += kwargs
            _values(core, kwargs.values(), recording, found)
    except (RuntimeError, NotImplementedError, _UnlikeError):
        # RuntimeError: layouts without a storage, and functorch's wrappers.
        return None
    return tuple(found)


def _tensor(core: Core, value: torch.Tensor, recording: bool, found: list[Any]) -> None:
    if (
        type(value) not in PLAIN
        or storage_id(value) not in core.ledger.blocks
        or not value.is_contiguous()
        or value.numel() > _MOST_ELEMENTS
        or (recording and value.requires_grad)
    ):
        raise _UnlikeError
    dtype = value.dtype
    if dtype.is_complex:
        # It may carry a conjugation, to be resolved by itself.
        raise _UnlikeError
    found += dtype, value.shape


def _values(core: Core, values: Iterable[Any], recording: bool | None, found: list[Any]) -> None:
    """Adds what tells these values apart; `recording` is None where none may be a tensor."""
    for value in values:
        kind = type(value)
        if kind in PLAIN and recording is not None:
            _tensor(core, value, recording, found)
        elif kind in _VALUES:
            found += kind, value
        elif kind is list or kind is tuple:
            found += kind, len(value)
            _values(core, value, recording, found)
        elif kind is slice:
            found.append(kind)
            _values(core, (value.start, value.stop, value.step), None, found)
        else:
            raise _UnlikeError


def learned(
    core: Core,
    func: Any,
    args: Args,
    kwargs: Kwargs,
    trace: list[Operator | None],
    surge: int,
    out: Any,
) -> bool:
    """Notes which operators a call came to, where the same may be said of the next one.

    `surge` is how many bytes of memory more there were meanwhile, at most.
    """
    if not trace or any(part is None or part.written for part in trace):
        return False
    several = out if isinstance(out, (tuple, list)) else (out,)
    if not all(_on_device(core, value) for value in several):
        return False
    exact = key(core, func, args, kwargs)
    if exact is None:
        return False
    calls = core.sequences.setdefault(func, {})
    if len(calls) >= _MOST_KNOWN:
        calls.clear()
    calls[exact] = tuple(part.name for part in trace if part is not None), surge
    return True


def _on_device(core: Core, value: object) -> bool:
    """Whether a result is a strided tensor of the device, and no wrapper of one."""
    try:
        return (
            type(value) in PLAIN and storage_id(cast("torch.Tensor", value)) in core.ledger.blocks
        )
    except (RuntimeError, NotImplementedError):
        return False
