"""Refuses in one line what traces programs for a compiler: its C++ knows no simulated device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.jit import _builtins
from torch.utils import _pytree

from conformance.simulate.device import REPORTED_NAME
from conformance.simulate.internals import no_dispatch_modes, traced
from conformance.simulate.patching import Patches

if TYPE_CHECKING:
    from conformance.simulate.core import Core

_MODES = torch._C._TorchDispatchModeKey
_others = torch._C._len_torch_dispatch_stack
_KINDS = {_MODES.FAKE: "FakeTensorMode", _MODES.PROXY: "make_fx"}


class NotSimulatedError(RuntimeError):
    """Something that works on a Mac, or may, and that this simulation cannot show."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"[{REPORTED_NAME}] {what} of tensors on the device is not simulated: what traces "
            "knows only the host's; do it before they go there, or on a Mac"
        )


def refuse_traced() -> None:
    """Raises NotSimulatedError where an operator on the device would be traced, not run."""
    # Usually no mode but the simulation's is active, and this is asked at each operator.
    if not _others():
        return
    for key, what in _KINDS.items():
        if torch._C._get_dispatch_mode(key) is not None:
            raise NotSimulatedError(what)


def refuse_jit_traced() -> None:
    """Raises NotSimulatedError inside torch.jit.trace, where the device is met."""
    if traced() is not None:
        raise NotSimulatedError("torch.jit.trace")


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in _pytree.tree_leaves(values):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, torch.nn.Module):
            yield from itertools.chain(value.parameters(), value.buffers())


def compile_as(patches: Patches, function: Any, operator: str) -> None:
    """Has TorchScript take a function in the place of another for the operator that one is.

    Its compiler knows them by identity.
    """
    known = _builtins._get_builtin_table()  # type: ignore[no-untyped-call]
    known[id(function)] = operator
    patches.later(lambda: known.pop(id(function)))


def install(patches: Patches, core: Core, is_backend_name: Callable[[Any], bool]) -> None:
    """Guards the entry points; a tensor or module of the host goes through as ever."""
    thread, holds = core.thread, core.ledger.holds

    def guarded(what: str, plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if any(holds(tensor) for tensor in _tensors((args, kwargs))):
                raise NotSimulatedError(what)
            return plain(*args, **kwargs)

        return call

    def load(*args: Any, **kwargs: Any) -> Any:
        where = args[1] if len(args) > 1 else kwargs.get("map_location")
        if isinstance(where, (str, int, torch.device)) and is_backend_name(where):
            raise NotSimulatedError("torch.jit.load")
        return plain_load(*args, **kwargs)

    def run(compiled: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls what was compiled: on the device the function that it was compiled from."""
        function = getattr(compiled, "_torchdynamo_inline", None)
        if function is not None and any(holds(tensor) for tensor in _tensors((args, kwargs))):
            return function(*args, **kwargs)
        return plain_run(compiled, *args, **kwargs)

    def run_method(compiled: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a scripted module, in which a tensor's device is read as the host's."""
        before = thread.call, thread.interpreted
        if any(holds(tensor) for tensor in _tensors((args, kwargs))):
            thread.call, thread.interpreted = (compiled, args, kwargs), True
        try:
            return plain_run_method(compiled, *args, **kwargs)
        finally:
            thread.call, thread.interpreted = before

    def traced_on_host(plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Under any dispatch mode the tracer loses what a convolution made.
            with no_dispatch_modes():
                return plain(*args, **kwargs)

        return call

    def noted(plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            core.traces.append(plain)
            try:
                return plain(*args, **kwargs)
            finally:
                core.traces.pop()

        return call

    # All of torch's Python begins a trace by one of these.
    for home, prefix in ((torch._C, "_create_function"), (torch._C.ScriptModule, "_create_method")):
        for name in (f"{prefix}_from_trace", f"{prefix}_from_trace_with_dict"):
            patches.set(home, name, noted(getattr(home, name)))
    by_tracing = "_create_graph_by_tracing"
    patches.set(torch._C, by_tracing, noted(getattr(torch._C, by_tracing)))
    plain_load = patches.set(torch.jit, "load", load)
    plain_run_method = patches.set(torch._C.ScriptMethod, "__call__", run_method)
    plain_run = patches.set(torch.jit.ScriptFunction, "__call__", run)
    scripted: Any = vars(torch.jit)["RecursiveScriptModule"]
    for owner, name in (
        (torch.export, "export"),
        (torch.export, "draft_export"),
        (torch.jit, "trace"),
        (torch.jit, "trace_module"),
        (torch.jit, "save"),
        (scripted, "save"),
        (scripted, "save_to_buffer"),
    ):
        what = f"{owner.__name__}.{name}"
        plain = getattr(owner, name)
        if name in ("trace", "trace_module"):
            plain = traced_on_host(plain)
        patches.set(owner, name, guarded(what, plain))
