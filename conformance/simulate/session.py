"""One simulation: enters the modes, replaces the surface, follows threads, and undoes it all."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch

from conformance.simulate import limits, signs, surface, warned
from conformance.simulate.core import Core
from conformance.simulate.device import REPORTED_NAME, Machine
from conformance.simulate.dispatch import DeviceMode
from conformance.simulate.functions import FunctionMode
from conformance.simulate.internals import function_modes, other_function_modes
from conformance.simulate.patching import Patches
from conformance.simulate.record import Recorder

_active: list[Simulation] = []


class Simulation(AbstractContextManager["Simulation"]):
    """A simulated MPS device, present inside a `with` block and on threads started there."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.recorder = Recorder()
        self.core = Core(machine, self.recorder)
        self.core.function_mode = functools.partial(FunctionMode, self.core)
        self._patches = Patches()
        self._modes = ExitStack()
        self._stance: Any = None

    def __enter__(self) -> Simulation:
        """Raises RuntimeError where a simulation is already under way."""
        if _active:
            raise RuntimeError(f"{REPORTED_NAME} is already active; leave that block first")
        _active.append(self)
        try:
            surface.install(self._patches, self.core)
            if not other_function_modes():
                # Above another mode a sign could not tell in time which of them is missing.
                signs.install(self._patches, self.core)
            warned.install(self._patches)
            self._follow_threads()
            self._follow_autograd()
            self._run_compiled_eagerly()
            limits.LISTENERS.append(self.core.refused)
            self._patches.later(lambda: limits.LISTENERS.remove(self.core.refused))
            surface.forget_answers()
            self._modes.enter_context(self.on_this_thread())
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        try:
            self._modes.close()
        finally:
            self._patches.undo()
            if self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None
            _active.remove(self)
            surface.forget_answers()

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """Makes the device present on a thread that was not started inside the block."""
        with DeviceMode(self.core), FunctionMode(self.core):
            yield

    def _follow_threads(self) -> None:
        simulation = self

        def start(thread: threading.Thread) -> None:
            if _active == [simulation]:
                run = thread.run

                def run_here() -> None:
                    with simulation.on_this_thread():
                        run()

                thread.run = run_here  # type: ignore[method-assign]
            plain_start(thread)

        plain_start = self._patches.set(threading.Thread, "start", start)

    def _follow_autograd(self) -> None:
        core = self.core

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            """Hooks and user-written derivatives run as outside any torch call."""
            thread = core.thread
            before = thread.target, thread.call
            thread.target = thread.call = None
            present = any(isinstance(m, FunctionMode) for m in function_modes())
            try:
                if present or not _active:
                    return plain_run(*args, **kwargs)
                with FunctionMode(core):
                    return plain_run(*args, **kwargs)
            finally:
                thread.target, thread.call = before

        plain_run = self._patches.set(torch.autograd, "_engine_run_backward", run_backward)
        self._patches.set(torch.autograd.graph, "_engine_run_backward", run_backward)

    def _run_compiled_eagerly(self) -> None:
        def compile_eagerly(*args: Any, **kwargs: Any) -> Any:
            self.recorder.note(
                f"[{REPORTED_NAME}] torch.compile runs eagerly here: there is no Metal compiler."
            )
            if self._stance is None:
                self._stance = torch.compiler.set_stance("force_eager")
            return plain_compile(*args, **kwargs)

        plain_compile = self._patches.set(torch, "compile", compile_eagerly)


def mps(
    macos: str = "15.5",
    memory_gb: float = 16,
    fallback: bool | None = None,
    ratchet: bool = False,
    torch: str | None = None,
) -> Simulation:
    """A simulated MPS device for a `with` block.

    `macos` is the version to stand for, `memory_gb` the machine's memory in GiB, `fallback`
    whether missing operators run on the host (None: as PYTORCH_ENABLE_MPS_FALLBACK says),
    `ratchet` whether the driver keeps freed blocks until the cache is emptied; `torch` an older release than
    the installed one, whose missing operators are missing here. Raises ValueError
    for values that name no Mac, RuntimeError (on entering) inside another simulation. Tensors
    that outlive the block are ordinary CPU tensors.
    """
    return Simulation(Machine(macos, memory_gb, fallback, ratchet, torch))


def active() -> Simulation | None:
    """The simulation under way, if any."""
    return _active[-1] if _active else None
