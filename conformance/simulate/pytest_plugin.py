"""The pytest fixture and marker `mps_sim`: a simulated MPS device for a test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conformance.simulate.session import Simulation, mps


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and keeps the simulation's own remarks from failing strict runs."""
    config.addinivalue_line(
        "markers",
        "mps_sim(macos='15.5', memory_gb=16, fallback=None, ratchet=False): run this test on a "
        "simulated MPS device",
    )
    config.addinivalue_line(
        "filterwarnings", "default::conformance.simulate.record.SimulationWarning"
    )


@pytest.fixture
def mps_sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    """A simulation around the test, with the settings of its `mps_sim` marker, if it has one."""
    marker = request.node.get_closest_marker("mps_sim")
    settings: dict[str, Any] = dict(marker.kwargs) if marker else {}
    with mps(**settings) as simulation:
        yield simulation


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test marked `mps_sim` the fixture of that name."""
    for item in items:
        names = getattr(item, "fixturenames", None)
        if names is not None and item.get_closest_marker("mps_sim") and "mps_sim" not in names:
            names.insert(0, "mps_sim")
