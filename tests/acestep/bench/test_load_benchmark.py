"""A small version of the load measurement: nothing lost or mixed, although the server is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from acestep.bench import load_benchmark


@pytest.mark.soak
@pytest.mark.timeout(280)
def test_nothing_is_lost_or_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = load_benchmark.measure(tmp_path, clients=2, requests=(0, 3, 7, 1))
    assert record.problems == []
    assert record.outcomes == {"song": 2, "cancelled": 1, "broken upload refused": 1}
    assert "half-made folders 0" in capsys.readouterr().out
