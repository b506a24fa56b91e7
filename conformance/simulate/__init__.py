"""A device that says it is `mps`, computes on the CPU, and fails where MPS fails."""

from __future__ import annotations

from conformance.simulate.device import REPORTED_NAME, Machine
from conformance.simulate.limits import LIMITS, Limit
from conformance.simulate.record import SimulationWarning
from conformance.simulate.session import Simulation, active, mps

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
