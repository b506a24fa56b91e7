"""The state that both modes of one simulation share, and what is under way on each thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from conformance.simulate.device import DEVICE, HOST, Machine
from conformance.simulate.internals import no_dispatch_modes
from conformance.simulate.memory import Ledger
from conformance.simulate.operators import Operator, describe
from conformance.simulate.randomness import RandomState
from conformance.simulate.record import Recorder

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Kinds = tuple[Any, ...]
Known = dict[Kinds, tuple[Operator, bool]]
"""Operators by the kinds of a call's arguments, and whether nothing above their kernels matters."""


class Thread(threading.local):
    """What the function mode tells the dispatch mode about the call under way on this thread."""

    target: torch.device | None = None
    call: tuple[Any, Args, Kwargs] | None = None
    operator: Any = None
    inside: bool = False
    interpreted: bool = False
    """Whether TorchScript runs, which reads the host as the device of a simulated tensor."""
    noteworthy: int = 0
    autocast: set[str]
    """The types of devices for which `torch.autocast` is on."""
    straight: AbstractContextManager[object]
    """A block whose operators reach no dispatch mode; one for each thread, for it is not nested."""
    trace: list[Operator | None] | None = None
    """Where operators are noted as they run: None for one with something about it to check."""

    def __init__(self) -> None:
        self.straight = no_dispatch_modes()
        self.autocast = set()

    @property
    def caller(self) -> str:
        """The name of the torch function under way, or nothing."""
        return getattr(self.call[0], "__name__", "") if self.call else ""


class Core:
    """The state that both modes of one simulation share."""

    def __init__(self, machine: Machine, recorder: Recorder) -> None:
        self.machine = machine
        self.recorder = recorder
        self.counts = recorder.operators
        """How often each operator ran, by name; every call asks for it."""
        self.ledger = Ledger(machine)
        self.random = RandomState()
        self.thread = Thread()
        self.calls: dict[Any, Known] = {}
        """Functions of torch that are one operator, by the kinds of their arguments (`direct.py`)."""
        self.sequences: dict[Any, dict[tuple[Any, ...], tuple[tuple[str, ...], int]]] = {}
        """Functions that are several operators, and the memory these take meanwhile, by all of
        their arguments (`parts.py`)."""
        self.tries: dict[Any, int] = {}
        self.autocasts = False
        """Whether autocast has been on in any thread: sooner asked than this thread's."""
        self.traces: list[object] = []
        """What torch.jit traces just now, in whatever thread: sooner asked than torch."""
        self.negated = False
        """Whether a tensor may carry a sign that is resolved above the kernels."""
        self.function_mode: Callable[[], AbstractContextManager[object]] = nullcontext

    def heed_signs(self) -> None:
        """Has no kernel called by itself any more, once a view that negates has been made."""
        self.negated = True
        for known in self.calls.values():
            known.update({kinds: (operator, False) for kinds, (operator, _) in known.items()})

    def refused(self, code: str, operator: str) -> None:
        """Notes a limit met by the operator, or by the function, under way on this thread."""
        func, self.thread.operator = self.thread.operator, None
        if isinstance(func, torch._ops.OpOverload):
            func = describe(func)
        if not operator and isinstance(func, Operator):
            operator = func.name
        self.recorder.refusal(code, operator or getattr(func, "__name__", "torch"))

    def wanted(self) -> torch.device:
        """Where a tensor made by the call under way belongs: its stated device or its operands'."""
        thread = self.thread
        if thread.target is not None:
            return thread.target
        if thread.call is not None and any(
            self.ledger.holds(tensor) for tensor in tensors_in(*thread.call[1:])
        ):
            return DEVICE
        return HOST


def tensors_in(args: Sequence[Any], kwargs: Kwargs) -> list[torch.Tensor]:
    """The tensors among arguments, also inside lists and tuples."""
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, torch.Tensor)]
    return found
