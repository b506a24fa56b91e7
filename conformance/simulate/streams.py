"""Streams and events of the simulated device, where everything has finished once it is called."""

from __future__ import annotations

import time
from typing import Any

import torch

from conformance.simulate.device import BACKEND, DEVICE

_RealEvent = torch.Event
_RealStream = torch.Stream


def _ours(device: object) -> bool:
    if device is None:
        return torch.accelerator.current_accelerator() == torch.device(BACKEND)
    named: Any = device
    return bool(torch.device(named).type == BACKEND)


class DeviceEvent:
    """An event that has always happened; `elapsed_time` is the host's clock, in milliseconds."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.device = DEVICE
        self._timing = enable_timing
        self._at = 0.0

    def record(self, stream: object = None) -> None:
        """Notes the time now."""
        self._at = time.perf_counter()

    def wait(self, stream: object = None) -> None:
        """Returns at once: nothing is ever under way."""

    def query(self) -> bool:
        """True: everything before it has finished."""
        return True

    def synchronize(self) -> None:
        """Returns at once: nothing is ever under way."""

    def elapsed_time(self, end: DeviceEvent) -> float:
        """Milliseconds from this event to `end`. Raises RuntimeError without `enable_timing`."""
        if not (self._timing and end._timing):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        return (end._at - self._at) * 1e3


class DeviceStream:
    """The one stream of the device."""

    def __init__(self) -> None:
        self.device = DEVICE
        self.stream_id = 0

    def synchronize(self) -> None:
        """Returns at once: nothing is ever under way."""

    def query(self) -> bool:
        """True: everything has finished."""
        return True

    def record_event(self, event: DeviceEvent | None = None) -> DeviceEvent:
        """Records `event`, or a new one, and returns it."""
        event = event or DeviceEvent()
        event.record()
        return event

    def wait_event(self, event: DeviceEvent) -> None:
        """Returns at once: the event has happened."""

    def wait_stream(self, stream: DeviceStream) -> None:
        """Returns at once: the stream has finished."""

    def __enter__(self) -> DeviceStream:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to restore: there is one stream."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceStream)

    def __hash__(self) -> int:
        return hash(DEVICE)


class _EventMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (_RealEvent, DeviceEvent))


class Event(metaclass=_EventMeta):
    """Stands in for torch.Event."""

    def __new__(cls, device: object = None, **options: Any) -> Any:
        """A device event for `mps` (or no device), torch's own for another."""
        if _ours(device):
            return DeviceEvent(enable_timing=bool(options.get("enable_timing", False)))
        plain: Any = _RealEvent
        return plain(device=device, **options)


class _StreamMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (_RealStream, DeviceStream))


class Stream(metaclass=_StreamMeta):
    """Stands in for torch.Stream."""

    def __new__(cls, device: object = None, **options: Any) -> Any:
        """The device's stream for `mps` (or no device), torch's own for another."""
        if _ours(device):
            return DeviceStream()
        plain: Any = _RealStream
        return plain(device=device, **options)
