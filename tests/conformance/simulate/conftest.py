"""Fixtures shared by the tests of the simulated device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from conformance import simulate


@pytest.fixture
def sim() -> Iterator[simulate.Simulation]:
    """A simulated Mac with the defaults: macOS 15.5, 16 GiB, no fallback."""
    torch.manual_seed(0)
    with simulate.mps(fallback=False) as simulation:
        yield simulation
