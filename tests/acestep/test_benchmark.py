"""Tests of the comparison with plain diffusers: it runs, and its rows hold what they say."""

from __future__ import annotations

import json

import pytest

from acestep import benchmark
from acestep.device import resolve


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--device", "cpu", "--seconds", "0.6", "--repeats", "1"]) == 0
    first, row = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["device"] == "cpu"
    assert row["seconds"] == 0.6
    assert row["acestep_s"] > 0
    assert row["diffusers_s"] > 0
    assert row["ratio"] == pytest.approx(row["diffusers_s"] / row["acestep_s"], abs=0.02)
    assert set(row["stages"]) == {"diffusion", "decoding"}


def test_across_devices_compares_the_same_song() -> None:
    assert benchmark.across_devices(resolve("cpu"), seconds=0.6) == 0.0
