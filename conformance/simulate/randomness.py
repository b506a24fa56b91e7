"""The device's random numbers: generators that say `mps` and a stream of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch

from conformance.simulate.device import BACKEND, DEVICE
from conformance.simulate.internals import generator_id

_CPU_GENERATOR = torch._C.Generator
_MIX = 0x6D70_7300
"""Mixed into seeds, because MPS's stream for a seed is not the CPU's."""
_MASK = 2**64 - 1
_known: WeakValueDictionary[int, DeviceGenerator] = WeakValueDictionary()


class DeviceGenerator(_CPU_GENERATOR):
    """A generator of the simulated device.

    Seeds give a stream that is repeatable, and differs from the CPU's for the same seed, as on a
    Mac; it is not the Mac's stream.
    """

    def __new__(cls, device: object = None) -> DeviceGenerator:
        """Made on the host whatever `device` says; the name is only reported."""
        made: DeviceGenerator = _CPU_GENERATOR.__new__(cls)
        made._seed = int(_CPU_GENERATOR.initial_seed(made))
        _known[generator_id(made)] = made
        return made

    def __init__(self, device: object = None) -> None:
        super().__init__()

    _seed: int

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device this generator reports."""
        return DEVICE

    def manual_seed(self, seed: int) -> DeviceGenerator:
        """Restarts the stream; any integer that torch accepts as a seed."""
        _CPU_GENERATOR.manual_seed(self, (int(seed) ^ _MIX) & _MASK)
        self._seed = int(seed)
        return self

    def seed(self) -> int:
        """Restarts the stream from a random seed and returns that seed."""
        seed = int(_CPU_GENERATOR.seed(self))
        self.manual_seed(seed)
        return seed

    def initial_seed(self) -> int:
        """The seed that was asked for."""
        return self._seed


def on_device(generator: torch._C.Generator) -> bool:
    """Whether a generator is the device's; C++ hands dispatch modes a new wrapper each time."""
    return generator_id(generator) in _known


class _Meta(type):
    """Lets every real generator count as an instance of the public name."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _CPU_GENERATOR)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _CPU_GENERATOR)


class Generator(metaclass=_Meta):
    """Stands in for torch.Generator: makes device generators for `mps`, real ones otherwise."""

    def __new__(cls, device: Any = None) -> Any:
        """`device` as for torch.Generator: a torch.device, a string, or None."""
        if device is None:
            return _CPU_GENERATOR()
        if isinstance(device, int) or torch.device(device).type == BACKEND:
            return DeviceGenerator()
        return _CPU_GENERATOR(device=device)


class RandomState:
    """The device's default generator."""

    def __init__(self) -> None:
        self.default = DeviceGenerator()
        self.default.manual_seed(torch.initial_seed())
        self._lent = threading.local()

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Lets kernels that take no generator draw from the device's stream."""
        if getattr(self._lent, "out", False):
            # A part of an operator that draws already: the stream goes on where it is.
            yield
            return
        host = torch.default_generator
        saved = host.get_state()
        host.set_state(self.default.get_state())
        self._lent.out = True
        try:
            yield
        finally:
            self._lent.out = False
            self.default.set_state(host.get_state())
            host.set_state(saved)
