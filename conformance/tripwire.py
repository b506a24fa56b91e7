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
from functools import partial, wraps
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any

import torch
from torch.utils._device import _device_constructors

from conformance.blame import LIBRARY, TREE, Blame, Place, Touch
from conformance.rewire import FunctionWatch, ModuleWatch, functions_in, shadow

_INITIALISERS = frozenset({"torch.cuda._lazy_init", "torch.cuda.init"})
# What a tree may read to answer a question about CUDA; none of them starts it.
_QUERIES = frozenset(
    {"torch.cuda.is_available", "torch.cuda.is_initialized", "torch.cuda.device_count"}
)
_armed: list[Tripwire] = []
_local = threading.local()


class Tripwire(AbstractContextManager["Tripwire"]):
    """Records touches inside a `with` block, on every thread."""

    def __init__(self, package: Path, *, may_name_cuda: bool = False) -> None:
        """Set up without arming.

        Args:
            package: the folder of the package under test; code below it is the tree.
            may_name_cuda: `torch.device` may be made for CUDA, and whether it is there be
                asked, because the caller asks the tree about CUDA; using such a device is
                noticed all the same.
        """
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
            if (t.initialises and not (harmless and t.call in _INITIALISERS))
            or (t.origin == TREE and t.call not in allowed)
        ]

        def said_better(touch: Touch) -> bool:
            beside = [t.call for t in found if t.place == touch.place and t is not touch]
            follows = touch.call == "torch.cuda._lazy_init" and bool(beside)
            return follows or any(call.startswith(f"{touch.call}.") for call in beside)

        return [touch for touch in found if not said_better(touch)]

    @property
    def library_touches(self) -> list[Touch]:
        """Touches by libraries, the harmless ones included."""
        return [t for t in self.touches if t.origin == LIBRARY]

    def __enter__(self) -> Tripwire:
        """Raises RuntimeError where one is armed already."""
        if _armed:
            raise RuntimeError("a tripwire is armed already; leave that block first")
        self._started = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        try:
            self._arm()
        except BaseException:
            self._disarm()
            raise
        _armed.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _armed.clear()
        self._disarm()

    def note(self, call: str, *, initialises: bool = False, depth: int = 3) -> None:
        """Record a touch by the frame `depth` up from here."""
        outer = getattr(_local, "touch", None)
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
                key, Touch(call, origin, place, via, initialises, name, count=0)
            )
        known.count += 1
        known.initialises = known.initialises or initialises
        _local.last = known

    def _arm(self) -> None:
        for watch in _cuda_watches():
            watch.on()
            self._undo.append(watch.off)
        self._shadow("device")
        self._shadow("Generator")
        self._follow_threads()
        _on_tensors(self._undo)

    def _disarm(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _shadow(self, name: str) -> None:
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
        for module in (torch, *self._modules_holding(plain)):
            for key in [k for k, value in vars(module).items() if value is plain]:
                setattr(module, key, stand)
                self._undo.append(partial(setattr, module, key, plain))
        if name == "device":
            # Pickling an instance looks its type up by name, and finds the stand-in there.
            copyreg.pickle(plain, lambda made_: (stand, _device_arguments(made_)))
            self._undo.append(partial(copyreg.dispatch_table.__delitem__, plain))

    def _modules_holding(self, plain: type) -> Iterator[ModuleType]:
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

            if _armed == [wire]:
                thread.run = run_watched  # type: ignore[method-assign]
            plain(thread)

        setattr(threading.Thread, "start", start)  # noqa: B010 (typed as what it replaces)
        self._undo.append(partial(setattr, threading.Thread, "start", plain))


def is_cuda(device: Any) -> bool:
    """Whether a value given as a device means CUDA."""
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, _DEVICE) and device.type == "cuda"


_DEVICE = torch.device

# Stands for a touch that the suite made itself; what follows from it is not recorded either.
_NOWHERE = Place("", 0, "", "")


def _note(call: str, *, initialises: bool = False, depth: int = 3) -> None:
    if _armed:
        _armed[-1].note(call, initialises=initialises, depth=depth)


def _on_tensors(undo: list[Callable[[], None]]) -> None:
    """Watch what makes, moves and asks tensors, for every thread at once.

    A `TorchFunctionMode` would see these too, at the price of a Python call for every operator
    and on one thread only.
    """
    own = vars(torch.Tensor)
    members = {
        "to": _Watched("Tensor.to", torch.Tensor.to, place=1),
        "new_tensor": _Watched("Tensor.new_tensor", torch.Tensor.new_tensor),
        "cuda": _Watched("Tensor.cuda", torch.Tensor.cuda, starts=True),
        "is_cuda": property(_always("Tensor.is_cuda", torch.Tensor.is_cuda.__get__, starts=False)),  # type: ignore[attr-defined]
    }
    for name, member in members.items():
        if name in own:
            undo.append(partial(setattr, torch.Tensor, name, own[name]))
        else:
            undo.append(partial(delattr, torch.Tensor, name))
        setattr(torch.Tensor, name, member)
    # The call also fills the cache behind `with torch.device(...)`, with the real functions.
    constructors = _device_constructors()
    for name, value in list(vars(torch).items()):
        if isinstance(value, BuiltinFunctionType) and value in constructors:
            setattr(torch, name, _factory(f"torch.{name}", value))
            undo.append(partial(setattr, torch, name, value))


class _Watched:
    """A function of torch that says when it is asked to use CUDA.

    It equals and hashes as the function it stands for, because modes are told of a call by
    the object found under the name, and look it up in tables.
    """

    def __init__(
        self, call: str, plain: Any, place: int | None = None, *, starts: bool = False
    ) -> None:
        self._call, self._plain, self._place, self._starts = call, plain, place, starts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._starts:
            _note(self._call, initialises=True)
            return self._plain(*args, **kwargs)
        device = kwargs.get("device")
        if device is None and self._place is not None and len(args) > self._place:
            device = args[self._place]
        if device is not None and is_cuda(device):
            named = "device=" if "device" in kwargs else ""
            _note(f"{self._call}({named}{str(device)!r})", initialises=True)
        return self._plain(*args, **kwargs)

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __eq__(self, other: object) -> bool:
        return other is self or other == self._plain

    def __hash__(self) -> int:
        return hash(self._plain)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


def _factory(call: str, plain: Any) -> Any:
    """A function proper: factories are also kept as attributes of classes, unbound."""

    @wraps(plain)
    def watched(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and is_cuda(device):
            _note(f"{call}(device={str(device)!r})", initialises=True)
        return plain(*args, **kwargs)

    return watched


def _always(call: str, plain: Any, starts: bool = True) -> Any:
    def watched(*args: Any, **kwargs: Any) -> Any:
        _note(call, initialises=starts)
        return plain(*args, **kwargs)

    return watched


def _device_arguments(device: Any) -> tuple[Any, ...]:
    return (device.type,) if device.index is None else (device.type, device.index)


_watches: dict[int, FunctionWatch | ModuleWatch] = {}


def _cuda_watches() -> list[FunctionWatch | ModuleWatch]:
    """Watches on everything that is loaded of `torch.cuda`, made once a process."""
    for watch in _fixed_watches() if not _watches else ():
        _watches[id(watch.function)] = watch
    modules = {n: m for n, m in sys.modules.items() if n == "torch.cuda" or _is_inner(n)}
    for module in modules.values():
        if id(module) not in _watches:
            _watches[id(module)] = ModuleWatch(module, _on_read)
    for name, module in sorted(modules.items(), key=lambda pair: len(pair[0])):
        for key, value in list(vars(module).items()):
            if str(getattr(value, "__module__", None) or "").startswith("torch.cuda"):
                for call, function in _functions(f"{name}.{key}", value):
                    if id(function) not in _watches:
                        _watches[id(function)] = FunctionWatch(function, _on_call(call))
    return list(_watches.values())


def _is_inner(name: str) -> bool:
    return name.startswith("torch.cuda.")


def _functions(call: str, value: Any) -> Iterator[tuple[str, FunctionType]]:
    if not isinstance(value, type):
        yield from ((call, function) for function in functions_in(value))
        return
    for key, member in vars(value).items():
        for function in functions_in(member):
            # A name that the class only inherits or borrows is watched where it is made.
            if function.__module__.startswith("torch.cuda"):
                yield (call if key in ("__init__", "__new__") else f"{call}.{key}"), function


def _on_read(module: ModuleType, name: str) -> None:
    _note(f"{module.__name__}.{name}", depth=4)


def _on_call(call: str) -> Any:
    def around(plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _inside(call, plain, args, kwargs, initialises=call in _INITIALISERS)

    return around


def _inside(
    call: str, plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any], initialises: bool
) -> Any:
    """Note a call and run it; what it touches itself is part of the same touch."""
    outer, _local.last = getattr(_local, "touch", None), None
    _note(call, initialises=initialises, depth=6)
    if outer is None:
        _local.touch = _local.last or Touch(call, LIBRARY, _NOWHERE)
    try:
        return plain(*args, **kwargs)
    finally:
        _local.touch = outer


def _fixed_watches() -> list[FunctionWatch]:
    """Watches on the doors to CUDA that stand outside `torch.cuda`."""

    def always(call: str) -> Any:
        return lambda plain, args, kwargs: _inside(call, plain, args, kwargs, True)

    def for_cuda(call: str, place: int, name: str, default: Any = None, starts: bool = True) -> Any:
        def around(plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[place] if len(args) > place else kwargs.get(name, default)
            if not is_cuda(given):
                return plain(*args, **kwargs)
            return _inside(f"{call}({str(given)!r})", plain, args, kwargs, starts)

        return around

    amp = torch.amp
    table: list[tuple[Any, Any]] = [
        (torch.nn.Module.cuda, always("Module.cuda")),
        (torch.nn.Module.to, for_cuda("Module.to", 1, "device")),
        (torch.set_default_device, for_cuda("torch.set_default_device", 0, "device", starts=False)),
        (
            amp.autocast_mode.autocast.__init__,
            for_cuda("torch.autocast", 1, "device_type", starts=False),
        ),
        (
            amp.grad_scaler.GradScaler.__init__,
            for_cuda("torch.amp.GradScaler", 1, "device", "cuda", False),
        ),
        (amp.custom_fwd, for_cuda("torch.amp.custom_fwd", 1, "device_type", starts=False)),
        (amp.custom_bwd, for_cuda("torch.amp.custom_bwd", 1, "device_type", starts=False)),
    ]
    return [FunctionWatch(function, around) for function, around in table]
