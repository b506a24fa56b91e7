"""The doors to CUDA, each with a watch that tells the armed tripwire who came through it."""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import torch
from torch.utils._device import _device_constructors

from conformance.blame import LIBRARY, Place, Touch
from conformance.rewire import FunctionWatch, ModuleWatch, functions_in

#: Functions that start CUDA.
INITIALISERS = frozenset({"torch.cuda._lazy_init", "torch.cuda.init"})
_DEVICE = torch.device
# Stands for a touch that the suite made itself; what follows from it is not recorded either.
_NOWHERE = Place("", 0, "", "")


class Listener(Protocol):
    """Whoever is told of touches."""

    def note(
        self, call: str, *, initialises: bool = False, depth: int = 3, acts: bool = True
    ) -> None:
        """Record a touch by the frame `depth` up from here."""


#: The tripwire that is armed, if one is.
armed: list[Listener] = []
#: Of each thread, the touch that it is inside of, and the last one that was recorded.
current = threading.local()


def _note(call: str, *, initialises: bool = False, depth: int = 3, acts: bool = True) -> None:
    if armed:
        armed[-1].note(call, initialises=initialises, depth=depth, acts=acts)


def is_cuda(device: Any) -> bool:
    """Whether a value given as a device means CUDA."""
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, _DEVICE) and device.type == "cuda"


def watch_tensors(undo: list[Callable[[], None]]) -> None:
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


_watches: dict[int, FunctionWatch | ModuleWatch] = {}
# What each module held when its functions were looked for; looking again takes long.
_looked_at: dict[str, list[Any]] = {}


def cuda_watches() -> list[FunctionWatch | ModuleWatch]:
    """Watches on everything that is loaded of `torch.cuda`, each made once a process."""
    for watch in _fixed_watches() if not _watches else ():
        _watches[id(watch.function)] = watch
    modules = {n: m for n, m in sys.modules.items() if n == "torch.cuda" or _is_inner(n)}
    for module in modules.values():
        if id(module) not in _watches:
            _watches[id(module)] = ModuleWatch(module, _on_read)
    for name, module in sorted(modules.items(), key=lambda pair: len(pair[0])):
        held, before = list(vars(module).values()), _looked_at.get(name, [])
        if len(held) == len(before) and all(map(operator.is_, held, before)):
            continue
        _looked_at[name] = held
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
    _note(f"{module.__name__}.{name}", depth=4, acts=False)


def _on_call(call: str) -> Any:
    def around(plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _inside(call, plain, args, kwargs, initialises=call in INITIALISERS)

    return around


def _inside(
    call: str, plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any], initialises: bool
) -> Any:
    """Note a call and run it; what it touches itself is part of the same touch."""
    outer, current.last = getattr(current, "touch", None), None
    _note(call, initialises=initialises, depth=6)
    if outer is None:
        current.touch = current.last or Touch(call, LIBRARY, _NOWHERE)
    try:
        return plain(*args, **kwargs)
    finally:
        current.touch = outer


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
