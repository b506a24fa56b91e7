"""Notices every touch of CUDA while it is armed, and says which frame did it.

What is watched: attribute reads on `torch.cuda` and its modules; calls of their functions,
methods and properties through any reference, also one imported long before; `Tensor.cuda`,
`Tensor.is_cuda` and every tensor made on or moved to CUDA; `Module.cuda` and `Module.to`;
`torch.device` and `torch.Generator` for CUDA; autocast and gradient scaling for CUDA; and the
start of CUDA itself. Not seen: names of C types that were imported from `torch.cuda` before
arming and never called, and integers used as devices.
"""

from __future__ import annotations

import copyreg
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch

from conformance.blame import LIBRARY, TREE, Blame, Touch
from conformance.rewire import shadow
from conformance.watches import INITIALISERS, armed, cuda_watches, current, is_cuda, watch_tensors

# What a tree may read to answer a question about CUDA; none of them starts it.
_QUERIES = frozenset(
    {"torch.cuda.is_available", "torch.cuda.is_initialized", "torch.cuda.device_count"}
)
# What else only asks; a tree that runs on other devices too may ask them all.
_QUESTIONS = _QUERIES | {
    "torch.cuda.is_bf16_supported",
    "torch.cuda.OutOfMemoryError",
    "torch.cuda.get_arch_list",
    "Tensor.is_cuda",
}


class Tripwire(AbstractContextManager["Tripwire"]):
    """Records touches inside a `with` block, on every thread."""

    def __init__(
        self, package: Path, *, may_name_cuda: bool = False, may_ask: bool = False
    ) -> None:
        """Set up without arming.

        Args:
            package: the folder of the package under test; code below it is the tree.
            may_name_cuda: `torch.device` may be made for CUDA, and whether it is there be
                asked, because the caller asks the tree about CUDA; using such a device is
                noticed all the same.
            may_ask: the tree may ask questions about CUDA and read its attributes, which do
                nothing; calls that act or start CUDA are noticed all the same.
        """
        self.may_ask = may_ask
        self.blame = Blame(package)
        self.may_name_cuda = may_name_cuda
        self._package = package
        self._started = False
        self._touches: dict[tuple[Any, ...], Touch] = {}
        self._undo: list[Callable[[], None]] = []

    @property
    def touches(self) -> list[Touch]:
        """Everything noticed so far, in order; the suite's own touches are left out."""
        return list(self._touches.values())

    @property
    def failures(self) -> list[Touch]:
        """What proves that the tree is bound to CUDA: its own touches, and a library's that
        would start CUDA. Of several on one line the one that says most is kept."""
        allowed = _QUERIES if self.may_name_cuda else ()
        # A library that makes sure of a CUDA that another target of this process has started
        # starts nothing; only a case that asks about CUDA may come so far.
        harmless = self.may_name_cuda and self._started
        found = [
            t
            for t in self.touches
            if (t.initialises and not (harmless and t.call in INITIALISERS))
            or (t.origin == TREE and t.call not in allowed and not self._only_asks(t))
        ]

        def said_better(touch: Touch) -> bool:
            beside = [t.call for t in found if t.place == touch.place and t is not touch]
            follows = touch.call == "torch.cuda._lazy_init" and bool(beside)
            return follows or any(call.startswith(f"{touch.call}.") for call in beside)

        return [touch for touch in found if not said_better(touch)]

    def _only_asks(self, touch: Touch) -> bool:
        return self.may_ask and (touch.call in _QUESTIONS or not touch.acts)

    @property
    def library_touches(self) -> list[Touch]:
        """Touches by libraries, the harmless ones included."""
        return [t for t in self.touches if t.origin == LIBRARY]

    def __enter__(self) -> Tripwire:
        """Raises RuntimeError where one is armed already."""
        if armed:
            raise RuntimeError("a tripwire is armed already; leave that block first")
        self._started = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        try:
            self._arm()
        except BaseException:
            self._disarm()
            raise
        armed.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        armed.clear()
        self._disarm()

    def note(
        self, call: str, *, initialises: bool = False, depth: int = 3, acts: bool = True
    ) -> None:
        """Record a touch by the frame `depth` up from here."""
        outer = getattr(current, "touch", None)
        if outer is not None:
            outer.initialises = outer.initialises or initialises
            return
        frame = sys._getframe(depth - 1)
        key: tuple[Any, ...] = (call, frame.f_code, frame.f_lineno)
        known = self._touches.get(key)
        if known is None:
            found = self.blame.find(depth)
            if found is None:
                return
            origin, place, via = found
            name = threading.current_thread().name
            key = (call, place, via) if self.blame.kind(frame.f_code.co_filename) != origin else key
            known = self._touches.setdefault(
                key, Touch(call, origin, place, via, initialises, name, count=0, acts=False)
            )
        known.count += 1
        known.acts = known.acts or acts
        known.initialises = known.initialises or initialises
        current.last = known

    def _arm(self) -> None:
        for watch in cuda_watches():
            watch.on()
            self._undo.append(watch.off)
        modules = [torch, *self._modules_of_the_tree()]
        self._shadow("device", modules)
        self._shadow("Generator", modules)
        self._follow_threads()
        watch_tensors(self._undo)

    def _disarm(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _shadow(self, name: str, modules: list[ModuleType]) -> None:
        """Exchange a type of torch for a stand-in, in torch and in the tree's modules."""
        plain = getattr(torch, name)

        if name == "device" and self.may_name_cuda:
            return

        def asked(values: tuple[Any, ...]) -> bool:
            found = next((str(value) for value in values if is_cuda(value)), None)
            if found is not None:
                self.note(f"torch.{name}({found!r})", depth=4)
            return found is not None

        def made(instance: Any, values: tuple[Any, ...]) -> None:
            if is_cuda(instance):
                self.note(f"torch.{name}({values[0]!r})", depth=4)

        stand = shadow(plain, asked, made)
        for module in modules:
            for key in [k for k, value in vars(module).items() if value is plain]:
                setattr(module, key, stand)
                self._undo.append(partial(setattr, module, key, plain))
        if name == "device":
            # Pickling an instance looks its type up by name, and finds the stand-in there.
            copyreg.pickle(plain, lambda made_: (stand, _device_arguments(made_)))
            self._undo.append(partial(copyreg.dispatch_table.__delitem__, plain))

    def _modules_of_the_tree(self) -> Iterator[ModuleType]:
        root = f"{self._package}/"
        for module in list(sys.modules.values()):
            if str(getattr(module, "__file__", None) or "").startswith(root):
                yield module

    def _follow_threads(self) -> None:
        """A thread started here knows its starter, on whom its first frames are blamed."""
        wire, plain = self, threading.Thread.start

        def start(thread: threading.Thread) -> None:
            starter, run = wire.blame.find(2), thread.run

            def run_watched() -> None:
                wire.blame.remember_starter(starter)
                try:
                    run()
                finally:
                    wire.blame.forget_starter()

            if armed == [wire]:
                thread.run = run_watched  # type: ignore[method-assign]
            plain(thread)

        setattr(threading.Thread, "start", start)  # noqa: B010 (typed as what it replaces)
        self._undo.append(partial(setattr, threading.Thread, "start", plain))


def _device_arguments(device: Any) -> tuple[Any, ...]:
    return (device.type,) if device.index is None else (device.type, device.index)
