"""The simulated device as torch names it, with what `machine.py` says of it."""

from __future__ import annotations

import torch

from conformance.simulate.machine import (
    ABSENT,
    ABSENT_BACKEND,
    BACKEND,
    GIB,
    REPORTED_NAME,
    Machine,
)

__all__ = [
    "ABSENT",
    "ABSENT_BACKEND",
    "BACKEND",
    "DEVICE",
    "GIB",
    "HOST",
    "REPORTED_NAME",
    "Machine",
]

DEVICE = torch.device(BACKEND, 0)
HOST = torch.device("cpu")
