"""A device that says it is `mps`, computes on the CPU, and fails where MPS fails."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.simulate.limits import LIMITS, Limit
    from conformance.simulate.machine import REPORTED_NAME, Machine
    from conformance.simulate.record import SimulationWarning
    from conformance.simulate.session import Simulation, active, mps

_HOMES = {
    "LIMITS": "limits",
    "REPORTED_NAME": "machine",
    "Limit": "limits",
    "Machine": "machine",
    "Simulation": "session",
    "SimulationWarning": "record",
    "active": "session",
    "mps": "session",
}

__all__ = [
    "LIMITS",
    "REPORTED_NAME",
    "Limit",
    "Machine",
    "Simulation",
    "SimulationWarning",
    "active",
    "mps",
]


if any(type(finder).__name__ == "AfterTorch" for finder in sys.meta_path):
    # Under the command torch's import adds the device. Were a part of this package the first to
    # import torch, that would want the part before it is there.
    importlib.import_module("torch")


def __getattr__(name: str) -> object:
    """Loads what is asked for, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
