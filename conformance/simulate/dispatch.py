"""Runs every operator on simulated tensors with the CPU's kernels, as MPS would have allowed it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.simulate import checks, gaps, limits, operands, programs
from conformance.simulate.core import Args, Core, Kwargs, tensors_in
from conformance.simulate.device import DEVICE, HOST
from conformance.simulate.internals import storage_id
from conformance.simulate.memory import is_backend
from conformance.simulate.operators import Operator, Support, describe
from conformance.simulate.randomness import on_device
from conformance.simulate.tracing import refuse_traced
from conformance.simulate.widening import widened

_MOVES = frozenset({"aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::set_"})
_INDEXED = frozenset(
    {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
    | {"aten::_unsafe_index", "aten::_unsafe_index_put"}
)
_HOST_OPERANDS = frozenset({"aten::_pack_padded_sequence", "aten::_pad_packed_sequence"})
_HOST_RESULTS = {"aten::_pack_padded_sequence": (1,)}
"""Results, by place, that lie on the host whatever the device of the operands."""
_QUESTIONS = frozenset(
    {"aten::_has_compatible_shallow_copy_type", "aten::is_same_size", "aten::is_set_to"}
    | {"aten::result_type", "aten::can_cast"}
)
"""What only asks about tensors, and computes on none of them."""
_MIXES = _MOVES | _HOST_OPERANDS | _QUESTIONS
"""Operators whose operands may lie on two devices."""
_WAITS = {
    "aten::_local_scalar_dense": "reads one element",
    "aten::equal": "reads one element",
    "aten::nonzero": "waits for the size of the result",
    "aten::masked_select": "waits for the size of the result",
    "aten::_unique2": "waits for the size of the result",
    "aten::unique_dim": "waits for the size of the result",
    "aten::unique_consecutive": "waits for the size of the result",
    "aten::bincount": "waits for the size of the result",
}
_EQUAL = torch.ops.aten.equal.default
_NEGATING = torch.ops.aten._neg_view.default
_ZEROING = torch.ops.aten._efficientzerotensor.default
"""These two make tensors whose values are not those in memory: C++ resolves them above its kernels."""
_IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd
_COMPUTES_IN_FLOAT64 = frozenset({"linalg_pinv", "pinverse"})
"""Functions whose C++ reads the device to choose float32 on MPS, and reads the CPU here."""
_WIDE = (torch.float64, torch.complex128)
_RESIZES = frozenset({"aten::resize_", "aten::resize_as_", "aten::set_"})
_WATCHED = frozenset({*_MOVES, *_INDEXED, *_WAITS, *_RESIZES, *checks.CHECKS, "aten::_linalg_svd"})
"""Operators that are looked at each time they run."""


def _kind(value: Any) -> Any:
    """What of an argument decides the parts that a composite runs."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.layout, value.dim(), value.numel() == 0
    if isinstance(value, (list, tuple)):
        return tuple([_kind(item) for item in value if isinstance(item, torch.Tensor)])
    # A flag or a mode chooses another way (`pinv` with `hermitian`), a size does not.
    return value if value is None or isinstance(value, (bool, str)) else type(value)


@functools.cache
def _plain(func: Any) -> Operator | None:
    """The description of an operator that needs no look at its arguments, else None."""
    operator = describe(func)
    if operator.base in _WATCHED or operator.random or operator.takes_device:
        return None
    return operator if operator.support in (Support.KERNEL, Support.COMPOSITE) else None


class DeviceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator after autograd, checks it against MPS's limits and runs it on the CPU."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: compilation is off in a simulation, and the guard costs more than the dispatch."""
        return False

    supports_higher_order_operators = True

    def __init__(self, core: Core) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.core = core

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):
            return programs.higher(self.core, self, func, args, kwargs or {})
        if types and any(operands.answer(kind) for kind in types):
            return programs.by_class(self.core, self, func, types, args, kwargs or {})
        thread = self.core.thread
        before, thread.operator = thread.operator, func
        with torch._C.DisableTorchFunction():
            out = self._dispatch(func, args, kwargs or {})
        thread.operator = before
        return out

    def _dispatch(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        core = self.core
        trace = core.thread.trace
        if trace is not None:
            trace.append(None)
        found = tensors_in(args, kwargs)
        blocks = core.ledger.blocks
        try:
            ours = [tensor for tensor in found if storage_id(tensor) in blocks]
            strided = True
        except (RuntimeError, NotImplementedError):
            ours = [tensor for tensor in found if core.ledger.holds(tensor)]
            strided = False
        if ours:
            refuse_traced()
            if func is _NEGATING or func is _ZEROING:
                core.heed_signs()
            elif core.negated and not describe(func).aliases:
                args = tuple(map(self._filled, args))
            operator = _plain(func) if strided and len(ours) == len(found) else None
            if operator is not None and operator.base not in core.machine.lacks:
                return self._run_plain(func, operator, args, kwargs, ours)
            return self._on_device(func, args, kwargs, found, ours)
        device = kwargs.get("device")
        if is_backend(device) or (not found and self._follows(device, kwargs)):
            return self._created(func, args, kwargs, found)
        if found and core.thread.target == DEVICE and describe(func).takes_device:
            return self._created(func, args, kwargs, found)
        generator = operands.generator(args, kwargs)
        if generator is not None and on_device(generator):
            raise limits.GENERATOR.error(expected="cpu", found=DEVICE.type)
        if func is _EQUAL and not found:
            # A traced program's optimiser compares numbers that it keeps as tensors.
            return args[0] == args[1]
        return func(*args, **kwargs)

    def _filled(self, value: Any) -> Any:
        """A tensor of zeros without memory in memory: under any mode some kernels would read it."""
        if not (isinstance(value, torch.Tensor) and value._is_zerotensor()):
            return value
        made = value.clone()
        if self.core.ledger.holds(value):
            self.core.ledger.mark(made)
        return made

    def _follows(self, device: torch.device | None, kwargs: Kwargs) -> bool:
        """Whether what is made from nothing goes where the call under way is at work."""
        if device is not None and device != HOST:
            return False
        if self.core.thread.interpreted:
            # TorchScript's own `tensor` names the layout, and does not say whether it was given a
            # device: numbers go there, and what may be an index stays. A wrong guess is refused.
            index = "layout" in kwargs and not kwargs["dtype"].is_floating_point
            if device is None or index:
                return False
        return self.core.wanted() == DEVICE

    def _run_plain(
        self, func: Any, operator: Operator, args: Args, kwargs: Kwargs, ours: list[torch.Tensor]
    ) -> Any:
        """The usual case, kept short: operands all on the device, nothing but their types to check."""
        core = self.core
        if operator.support is Support.KERNEL:
            checks.check_sizes(operator.base, ours)
            gaps.check(operator.base, ours)
        thread = core.thread
        if operator.whole:
            if not thread.inside:
                core.counts[operator.name] += 1
            try:
                out = func._op(*args, **kwargs)
            except (NotImplementedError, RuntimeError) as error:
                out = widened(operator, func, args, kwargs, error)
        else:
            out = self._compute(func, operator, args, kwargs)
        trace = thread.trace
        if trace:
            # Parts that were run one by one have been noted behind it.
            trace[-1] = operator
        blocks = core.ledger.blocks
        for tensor in (out,) if isinstance(out, torch.Tensor) else tensors_in((out,), {}):
            if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
                if not core.ledger.holds(tensor):
                    core.ledger.mark(tensor)
                continue
            if storage_id(tensor) not in blocks and not self._stays(tensor):
                if tensor.dtype is not torch.float32:
                    checks.check_dtype(tensor.dtype, core.machine)
                if tensor.dim() > checks.MOST_DIMENSIONS:
                    checks.check_layout(tensor, core.machine)
                storage = tensor.untyped_storage()
                if not core.ledger.takes(storage):
                    core.ledger.mark_storage(storage)
        return out

    def _stays(self, tensor: torch.Tensor) -> bool:
        """Whether a result is one of the 64-bit scalars that C++ computes with on the host."""
        dtype = tensor.dtype
        return dtype in _WIDE and self.core.thread.caller in _COMPUTES_IN_FLOAT64

    def _created(self, func: Any, args: Args, kwargs: Kwargs, found: list[torch.Tensor]) -> Any:
        """Makes a tensor on the device, from nothing or from host tensors."""
        refuse_traced()
        core = self.core
        operator = describe(func)
        if func is _ZEROING:
            core.heed_signs()
        if not operator.takes_device and not found and operator.base != "aten::lift_fresh":
            return func(*args, **kwargs)
        dtype = kwargs.get("dtype")
        asked = is_backend(kwargs.get("device")) or (
            core.thread.target is not None and not core.thread.inside
        )
        if dtype in _WIDE and not found and not asked:
            # C++ keeps the numbers it computes with in such tensors, on the host.
            return func(*args, **kwargs)
        if dtype is not None:
            checks.check_dtype(dtype, core.machine)
        layout = operands.layout(found, kwargs)
        if operator.on(layout, core.thread.caller) is Support.MISSING:
            self._refuse_or_fall_back(operator, layout, Support.MISSING)
        if found:
            self._transfer("to device", operator.base, operands.nbytes(found))
        kwargs = {**kwargs, "device": HOST} if "device" in kwargs else kwargs
        if operator.base == "aten::empty":
            core.ledger.reserve(operands.planned(args[0], dtype))
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return self._run(func, operator, args, kwargs, [])

    def _on_device(
        self,
        func: Any,
        args: Args,
        kwargs: Kwargs,
        found: list[torch.Tensor],
        ours: list[torch.Tensor],
    ) -> Any:
        core = self.core
        operator = describe(func)
        core.thread.noteworthy += 1
        target = core.thread.target if operator.takes_device else None
        if len(ours) < len(found):
            if operator.support is Support.MISSING and ours[0].layout is torch.strided:
                self._refuse_or_fall_back(operator, torch.strided, operator.support)
            self._check_devices(operator, args, kwargs, found)
        if operator.base in _MOVES:
            if target == HOST or not core.ledger.holds(found[0]):
                self._transfer("to host", operator.base, operands.nbytes(found[-1:]))
            elif len(ours) < len(found):
                self._transfer("to device", operator.base, operands.nbytes(found[-1:]))
        elif operator.base in _WAITS:
            self._transfer("to host", operator.base, 0, _WAITS[operator.base])
        elif operator.base in _INDEXED and any(t.dtype is torch.bool for t in found[1:]):
            self._transfer("to host", operator.base, 0, "boolean mask: waits for a size")
        asked = kwargs.get("device")
        if asked is not None and not is_backend(asked) and asked.type != HOST.type:
            # Shapes without values, or another device: what is made there is not ours.
            return func(*args, **kwargs)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": HOST}
        if target == HOST:
            return func(*args, **kwargs)
        self._check(operator, args, kwargs, ours)
        hosts = [tensor for tensor in found if not core.ledger.holds(tensor)]
        return self._run(func, operator, args, kwargs, hosts)

    def _check(
        self, operator: Operator, args: Args, kwargs: Kwargs, ours: list[torch.Tensor]
    ) -> None:
        """Raises what MPS would raise for this operator; otherwise records it."""
        core = self.core
        layout = operands.layout(ours, kwargs)
        support = operator.on(layout, core.thread.caller)
        if operator.base in core.machine.lacks:
            support = Support.MISSING
        if support in (Support.MISSING, Support.HOST):
            self._refuse_or_fall_back(operator, layout, support)
        elif operator.base in checks.CHECKS:
            checks.CHECKS[operator.base](args, core.machine)
        if support is Support.KERNEL:
            checks.check_sizes(operator.base, ours)
            gaps.check(operator.base, ours)
        dtype = kwargs.get("dtype")
        if dtype is not None:
            checks.check_dtype(dtype, core.machine)

    def _refuse_or_fall_back(
        self, operator: Operator, layout: torch.layout, support: Support
    ) -> None:
        core = self.core
        if support is Support.HOST or core.machine.falls_back:
            core.recorder.fallback(operator)
            return
        error = limits.MISSING if layout is torch.strided else limits.MISSING_SPARSE
        raise error.error(
            operator=operator.refused_as,
            commit=torch.version.git_version,
            key="SparseMPS" if layout is torch.sparse_coo else "SparseCsrMPS",
        )

    def _check_devices(
        self, operator: Operator, args: Args, kwargs: Kwargs, found: list[torch.Tensor]
    ) -> None:
        """Raises RuntimeError for operands on two devices, except where MPS lets them mix."""
        core = self.core
        if operator.base in _MIXES:
            return
        if torch._C._current_graph_task_id() != -1 and core.thread.call is None:
            # Derivative formulas make zeros whose device C++ reads as the CPU's.
            return
        values = [*zip(operator.arguments, args, strict=False), *kwargs.items()]
        tensors: list[tuple[str, bool]] = []
        stray = False
        for index, (name, value) in enumerate(values):
            if name == "indices" and operator.base in _INDEXED:
                continue
            for tensor in tensors_in((value,), {}):
                on_device = core.ledger.holds(tensor)
                tensors.append((name, on_device))
                exempt = tensor.dim() == 0 and index not in operator.written
                inner = tensor.dtype in _WIDE and core.thread.caller in _COMPUTES_IN_FLOAT64
                stray = stray or not (on_device or exempt or inner or tensor.device != HOST)
        if stray:
            if operator.base == "aten::convolution":
                checks.check_convolution_types(args, core.ledger.holds)
            if operator.base in _INDEXED and not core.ledger.holds(found[0]):
                raise limits.INDICES.error()
            raise checks.mixed(operator.name, tensors, not core.ledger.holds(found[0]))

    def _run(
        self, func: Any, operator: Operator, args: Args, kwargs: Kwargs, hosts: list[torch.Tensor]
    ) -> Any:
        core = self.core
        out = self._random(func, operator, args, kwargs) if operator.random else None
        if out is None:
            out = self._compute(func, operator, args, kwargs)
        written = {storage_id(tensor) for tensor in hosts if tensor.layout is torch.strided}
        if operator.base in _HOST_RESULTS:
            # The parts that it ran may have marked them.
            out = tuple(
                result.clone() if place in _HOST_RESULTS[operator.base] else result
                for place, result in enumerate(out)
            )
            written |= {storage_id(out[place]) for place in _HOST_RESULTS[operator.base]}
        for tensor in tensors_in((out,), {}):
            if not core.ledger.holds(tensor):
                if tensor.layout is torch.strided and storage_id(tensor) in written:
                    continue
                if not self._stays(tensor):
                    core.ledger.mark(tensor)
        if operator.base in _RESIZES and core.ledger.holds(args[0]):
            core.ledger.resized(args[0])
        return out

    def _compute(self, func: Any, operator: Operator, args: Args, kwargs: Kwargs) -> Any:
        """Runs the kernel; a composite both backends share is run part by part, once per shape.

        The parts are operators of their own, which MPS may lack.
        """
        thread = self.core.thread
        key = operator.reenter
        # Most operators run whole anyway; only for the others the layout is looked at.
        apart = key is not None and operator.sparse_apart
        if apart and operands.layout(tensors_in(args, kwargs), {}) is not torch.strided:
            key = None
        if operator.python is not None:
            self.core.counts[operator.name] += 1
            with programs.as_program(self.core, self):
                return operator.python(*args, **kwargs)
        if key is not None:
            signature = (*map(_kind, args), *((name, _kind(v)) for name, v in kwargs.items()))
        if key is None or signature in operator.seen:
            if not thread.inside:
                self.core.counts[operator.name] += 1
            try:
                return func(*args, **kwargs)
            except (NotImplementedError, RuntimeError) as error:
                return widened(operator, func, args, kwargs, error)
        before = thread.target, thread.inside, thread.noteworthy
        # Parts of what autograd would have decomposed count by themselves, of others with them.
        thread.target, thread.inside = DEVICE, thread.inside or key is not _IMPLICIT
        if thread.inside and not before[1]:
            self.core.counts[operator.name] += 1
        # Entered before it is proven: some composites, such as detach, dispatch to themselves.
        operator.seen.add(signature)
        proven = False
        try:
            with self:
                out = func._op_dk(key, *args, **kwargs)
            proven = key is not _IMPLICIT or thread.noteworthy == before[2]
        finally:
            thread.target, thread.inside = before[:2]
            if not proven:
                operator.seen.discard(signature)
        return out

    def _transfer(self, direction: str, operator: str, nbytes: int, why: str = "copy") -> None:
        """Records a transfer, unless the operator it is a part of was recorded."""
        if not self.core.thread.inside:
            self.core.recorder.transfer(direction, operator, nbytes, why)

    def _random(self, func: Any, operator: Operator, args: Args, kwargs: Kwargs) -> Any:
        """Draws from the device's own stream, which differs from the CPU's."""
        generator = operands.generator(args, kwargs)
        if generator is not None and not on_device(generator):
            if operator.base == "aten::randperm":
                raise limits.GENERATOR_PERMUTATION.error(expected=DEVICE, found=HOST)
            raise limits.GENERATOR.error(expected=DEVICE.type, found=HOST.type)
        if generator is not None:
            return self._compute(func, operator, args, kwargs)
        with self.core.random.as_default():
            return self._compute(func, operator, args, kwargs)
