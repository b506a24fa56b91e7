"""Answers the calls that C++ would settle before dispatch: placement, conversion, construction."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _device as torch_default

from conformance.simulate import autocast, checks, direct, limits
from conformance.simulate.core import Args, Core, Known, Kwargs, tensors_in
from conformance.simulate.device import ABSENT, ABSENT_BACKEND, BACKEND, DEVICE, HOST
from conformance.simulate.internals import (
    bare,
    function_modes,
    is_alias,
    other_function_modes,
    records_gradients,
    traced,
)
from conformance.simulate.memory import is_backend
from conformance.simulate.operators import describe
from conformance.simulate.tracing import NotSimulatedError, refuse_jit_traced
from conformance.simulate.transfer import move

Handler = Callable[[Core, Any, Args, Kwargs], Any]

HANDLERS: dict[Any, Handler] = {}


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """Registers a handler for torch functions."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def placed(device: Any) -> torch.device:
    """The device that an argument names, the simulated one always with its index.

    Raises, in torch's words, RuntimeError for an index no Mac has and AssertionError for CUDA.
    """
    if isinstance(device, int):
        # A number alone is an index of the accelerator.
        made = torch.device(BACKEND, device)
    else:
        made = device if isinstance(device, torch.device) else torch.device(device)
    if made.type == ABSENT_BACKEND:
        raise AssertionError(ABSENT)
    if made.type != BACKEND:
        return made
    if made.index not in (None, 0):
        raise RuntimeError(f"MPS device index must be 0, but got {made.index}")
    refuse_jit_traced()
    return DEVICE


def is_backend_name(device: Any) -> bool:
    """Whether an argument names the simulated device, as text or as a torch.device."""
    if device is None or isinstance(device, int):
        return device is not None
    return torch.device(device).type == BACKEND


def default_device() -> torch.device:
    """Where constructors put tensors when no device is stated.

    torch.get_default_device makes a tensor to find out, which would lead back here.
    """
    current = torch_default.CURRENT_DEVICE
    return HOST if current is None else placed(current)


class FunctionMode(TorchFunctionMode):
    """Sees each call of torch's Python API before torch does."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core

    def __torch_function__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        core = self.core
        known = core.calls.get(func)
        if known and not kwargs and not other_function_modes():
            made = direct.met(core, known, func, args)
            if made is not None:
                return made
        if not _PLAIN.issuperset(types) and _asks_classes(types):
            # Torch asks them next, with this mode on again, as it does without the simulation.
            return NotImplemented
        if known is None and func in _METADATA:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if (
            core.autocasts
            and HOST.type in core.thread.autocast
            and any(core.ledger.holds(tensor) for tensor in tensors_in(args, kwargs))
        ):
            # To C++ the device's tensors are the host's, which it would convert.
            with autocast.without_hosts():
                return self._answered(func, known, args, kwargs)
        return self._answered(func, known, args, kwargs)

    def _answered(self, func: Any, known: Known | None, args: Args, kwargs: Kwargs) -> Any:
        core = self.core
        if sys.is_finalizing():
            # C++ imports torch for each operator that a mode sees first, and Python has let it go.
            sys.modules.setdefault("torch", torch)
        if known is not None:
            return direct.run(core, known, call, func, args, kwargs)
        handler = HANDLERS.get(func)
        if handler is not None:
            core.thread.operator = func
            return handler(core, func, args, kwargs)
        return direct.first(core, call, func, args, kwargs)


def call(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Runs `func`, noting for the dispatch mode where tensors it makes belong."""
    if traced() is not None and any(core.ledger.holds(t) for t in tensors_in(args, kwargs)):
        refuse_jit_traced()
    device = kwargs.get("device")
    target = None
    if device is not None:
        target = placed(device)
    elif func in _CONSTRUCTORS and default_device() == DEVICE:
        target = DEVICE
    if target in (None, HOST) and kwargs.get("pin_memory"):
        # Host memory is the GPU's too on a Mac, and needs no allocator of its own.
        kwargs = {**kwargs, "pin_memory": False}
    if target == DEVICE:
        core.recorder.asked += 1
        kwargs = {**kwargs, "device": HOST}
    elif target is not None and target != HOST:
        return func(*args, **kwargs)
    thread = core.thread
    before = thread.target, thread.call
    thread.target, thread.call = target, (func, args, kwargs)
    try:
        return func(*args, **kwargs)
    finally:
        thread.target, thread.call = before


def _asks_classes(types: Iterable[type]) -> bool:
    """Whether a class among the operands has its say in this call before any device does."""
    return (
        torch._C._is_torch_function_enabled()
        and any(getattr(kind, "__torch_function__", _MUTE) is not _MUTE for kind in types)
        # A mode that was there before ours is still to be asked, and would be passed over.
        and all(isinstance(mode, FunctionMode) for mode in function_modes())
    )


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_MUTE: Any = torch._C._disabled_torch_function_impl
_CONSTRUCTORS = frozenset(torch_default._device_constructors())
_Tensor = torch.Tensor
_METADATA = frozenset(
    [getattr(_Tensor, name) for name in ("size", "dim", "numel", "stride", "is_contiguous")]
    + [getattr(_Tensor, name) for name in ("is_floating_point", "is_complex", "element_size")]
    + [getattr(_Tensor, name).__get__ for name in ("shape", "dtype", "ndim", "requires_grad")]
    + [getattr(_Tensor, name).__get__ for name in ("grad", "grad_fn", "is_leaf", "layout")]
)
"""What is asked of a tensor often and says nothing of devices."""


@handles(_Tensor.to)
def _to(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    tensor, *rest = args
    options = dict(kwargs)
    device, dtype = options.pop("device", None), options.pop("dtype", None)
    other = options.pop("other", None)
    if rest and isinstance(rest[0], _Tensor):
        other = rest.pop(0)
    if other is not None:
        device, dtype = other.device, other.dtype
    elif rest and isinstance(rest[0], (torch.device, str, int)):
        device = rest.pop(0)
    if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
        dtype = rest.pop(0)
    options.update(zip(("non_blocking", "copy"), rest, strict=False))
    if device is None:
        return call(core, func, args, kwargs)
    there = placed(device)
    core.recorder.asked += there == DEVICE
    here = DEVICE if core.ledger.holds(tensor) else tensor.device
    if there == here:
        stay = {"dtype": dtype or tensor.dtype, **options}
        return call(core, func, (tensor,), stay)
    if {here, there} != {HOST, DEVICE}:
        return call(core, func, args, kwargs)
    if tensor.is_nested and tensor.layout is torch.strided:
        raise limits.NESTED.error(device=DEVICE)
    return move(core, tensor, there, dtype, options.get("memory_format"))


@handles(torch.device)
def _device(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """An index alone is the accelerator's; C++ would look for one that this build has."""
    named = args[0] if args else kwargs.get("type")
    index = named if isinstance(named, int) else kwargs.get("index")
    if named is None or isinstance(named, int):
        args, kwargs = (BACKEND, index), {}
    made = func(*args, **kwargs)
    core.recorder.asked += made.type == BACKEND
    return made


@handles(torch._C._nn._parse_to)
def _parse_to(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """What Module.to was asked for; C++ would read a simulated tensor's device as the host's."""
    options = dict(kwargs)
    rest = list(args)
    other = options.pop("tensor", None)
    if rest and isinstance(rest[0], _Tensor):
        other = rest.pop(0)
    if other is not None:
        rest[:0] = [other.device, other.dtype]
    elif rest and isinstance(rest[0], int):
        rest[0] = placed(rest[0])
    if isinstance(options.get("device"), int):
        options["device"] = placed(options["device"])
    parsed = func(*rest, **options)
    core.recorder.asked += is_backend(parsed[0])
    return parsed


@handles(_Tensor.type_as)
def _type_as(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    tensor, other = args[0], args[1] if len(args) > 1 else kwargs["other"]
    return _to(core, _Tensor.to, (tensor, other), {})


@handles(_Tensor.cpu)
def _cpu(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    if core.ledger.holds(args[0]):
        return move(core, args[0], HOST, None, kwargs.get("memory_format"))
    return call(core, func, args, kwargs)


@handles(_Tensor.cuda)
def _cuda(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    raise AssertionError(ABSENT)


@handles(_Tensor.type)
def _type(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    tensor = args[0]
    wanted = kwargs.get("dtype", args[1] if len(args) > 1 else None)
    ours = core.ledger.holds(tensor)
    if wanted is None:
        name = str(func(tensor))
        return name.replace("torch.", f"torch.{BACKEND}.", 1) if ours else name
    if isinstance(wanted, torch.dtype):
        return call(core, func, (tensor, wanted), {})
    name = wanted if isinstance(wanted, str) else f"{wanted.__module__}.{wanted.__name__}"
    prefix = f"torch.{BACKEND}."
    if isinstance(wanted, str) and wanted.startswith(prefix):
        raise limits.TYPE_NAME.error(name=wanted)
    host_name = name.replace(prefix, "torch.", 1)
    there = DEVICE if name.startswith(prefix) else HOST
    dtype = getattr(torch, host_name.rpartition(".")[2]).dtype
    return move(core, tensor, there, dtype)


@handles(_Tensor.numpy)
def _numpy(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    if not core.ledger.holds(args[0]):
        return func(*args, **kwargs)
    if kwargs.get("force"):
        return func(move(core, args[0].detach(), HOST), force=True)
    raise limits.NUMPY.error()


@handles(_Tensor.__array__)
def _array(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    if core.ledger.holds(args[0]):
        raise limits.NUMPY.error()
    return func(*args, **kwargs)


@handles(_Tensor.tolist)
def _tolist(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    tensor = args[0]
    if core.ledger.holds(tensor):
        nbytes = tensor.numel() * tensor.element_size()
        core.recorder.transfer("to host", "Tensor.tolist", nbytes)
    return func(*args, **kwargs)


@handles(_Tensor.item, _Tensor.__bool__, _Tensor.__float__, _Tensor.__int__)
def _item(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    tensor = args[0]
    signed = core.negated or tensor.is_conj()
    if tensor.numel() != 1 or signed or not direct.alone(core, tensor):
        return call(core, func, args, kwargs)
    core.recorder.transfer("to host", "aten::_local_scalar_dense", 0, "reads one element")
    core.counts["aten::_local_scalar_dense"] += 1
    return bare(func, (), (tensor,), {})


@handles(_Tensor.__dlpack__)
def _dlpack(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    if core.ledger.holds(args[0]):
        raise limits.DLPACK.error()
    return func(*args, **kwargs)


Capsules = dict[int, tuple[Any, torch.Tensor]]


def to_dlpack(core: Core, capsules: Capsules, plain: Any, tensor: torch.Tensor) -> Any:
    """torch.to_dlpack, whose capsules of simulated tensors are torch's own to open."""
    capsule = plain(tensor)
    if core.ledger.holds(tensor):
        capsules[id(capsule)] = capsule, tensor.detach()
    return capsule


def from_dlpack(
    core: Core, capsules: Capsules, plain: Any, source: Any, *args: Any, **kwargs: Any
) -> Any:
    """torch.from_dlpack, which hands a simulated tensor over without an export to the host."""
    if id(source) in capsules:
        source = capsules.pop(id(source))[1]
    if isinstance(source, _Tensor) and core.ledger.holds(source):
        device = kwargs.get("device")
        alias = source.detach()
        return alias if device is None else move(core, alias, placed(device))
    return plain(source, *args, **kwargs)


_LINEAR = torch.ops.aten.linear.default


@handles(torch.nn.functional.linear)
def _linear(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    # MPS has a kernel for the whole of it; the CPU's parts would take integers.
    signal = args[0] if args else kwargs.get("input")
    if isinstance(signal, _Tensor) and core.ledger.holds(signal):
        checks.check_linear(signal)
        # Of such operands nothing is made on the way but views.
        alike = {getattr(operand, "dtype", None) for operand in args if operand is not None}
        if len(alike) == 1 and not kwargs and signal.dim() > 1 and signal.is_contiguous():
            return direct.whole(core, describe(_LINEAR), call, func, args)
    return call(core, func, args, kwargs)


@handles(torch.tensor_split, _Tensor.tensor_split)
def _tensor_split(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    # C++ reads the indices before it dispatches.
    for where in (*args[1:2], *kwargs.values()):
        if isinstance(where, _Tensor) and core.ledger.holds(where):
            raise limits.SPLIT_INDICES.error(device=DEVICE)
    return call(core, func, args, kwargs)


@handles(torch._C._VariableFunctions._pack_padded_sequence)
def _pack(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    lengths = args[1]
    if core.ledger.holds(lengths):
        name = lengths.type().rpartition(".")[2].removesuffix("Tensor")
        raise limits.LENGTHS.error(count=lengths.dim(), device=DEVICE, name=name)
    return call(core, func, args, kwargs)


@handles(torch._C._VariableFunctions.lstm)
def _lstm(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    # MPS has a kernel for the whole of it, except for packed sequences.
    signal, state = args[:2]
    whole = isinstance(state, (list, tuple)) and core.ledger.holds(signal)
    if whole and state[0].size(2) != state[1].size(2):
        raise limits.LSTM_PROJECTIONS.error()
    with autocast.without() if whole else nullcontext():
        return call(core, func, args, kwargs)


@handles(torch.ops.higher_order.cond)
def _cond(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    # Torch traces both branches to find the derivative.
    if records_gradients() and any(
        tensor.requires_grad and core.ledger.holds(tensor) for tensor in tensors_in(args, kwargs)
    ):
        raise NotSimulatedError("the derivative of torch.cond")
    return call(core, func, args, kwargs)


@handles(_Tensor.pin_memory)
def _pin_memory(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    raise (limits.PINNING if core.ledger.holds(args[0]) else limits.PINNING_HOST).error()


@handles(_Tensor.share_memory_)
def _share_memory(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    if core.ledger.holds(args[0]):
        raise limits.SHARING.error()
    return func(*args, **kwargs)


@handles(_Tensor.get_device, torch.get_device)
def _get_device(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    return DEVICE.index if core.ledger.holds(args[0]) else func(*args, **kwargs)


@handles(torch.tensor, _Tensor.new_tensor)
def make_tensor(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """torch.tensor and Tensor.new_tensor: made on the host, then put where it belongs."""
    device = kwargs.get("device")
    if device is not None:
        there = placed(device)
    elif func is _Tensor.new_tensor:
        there = args[0].device
    else:
        data = args[0] if args else kwargs.get("data")
        there = data.device if isinstance(data, _Tensor) else default_device()
    if there.type not in (BACKEND, HOST.type):
        return func(*args, **kwargs)
    options = {**kwargs, "device": HOST}
    data = args[-1] if args else kwargs.get("data")
    thread = core.thread
    before, thread.target = thread.target, HOST
    try:
        made = func(*args, **options)
        if isinstance(data, _Tensor) and is_alias(made, data):
            made = made.clone()
    finally:
        thread.target = before
    if there == DEVICE:
        core.recorder.transfer("to device", "torch.tensor", made.numel() * made.element_size())
        core.ledger.mark(made)
    return made


@handles(torch.as_tensor, torch.asarray)
def _as_tensor(core: Core, func: Any, args: Args, kwargs: Kwargs) -> Any:
    options = dict(kwargs)
    device = options.pop("device", None)
    data = args[0] if args else None
    if device is None and not isinstance(data, _Tensor):
        device = default_device()
    if device is None or placed(device).type not in (BACKEND, HOST.type):
        return call(core, func, args, kwargs)
    ours = isinstance(data, _Tensor) and core.ledger.holds(data)
    made = call(core, func, args, options if ours else {**options, "device": HOST})
    return move(core, made, placed(device))
