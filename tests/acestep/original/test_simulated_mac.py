"""The original's cases on the simulated MPS device: bit for bit what the CPU makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import arguments_of

from acestep.handler import AceStepHandler
from conformance import simulate

HERE = Path(__file__).parent

QUICK = {
    "turbo": ("cover-strength0.5", "ref"),
    "base": ("t2m-adg", "lego-2-4"),
    "xl-turbo": ("t2m-sde",),
    "xl-base": ("codes",),
}
NAMES = ("pred_latents", "encoder_hidden_states", "context_latents")


def cases(kind: str, quick: bool) -> list[dict[str, Any]]:
    files = sorted((HERE / "cases" / kind).glob("*.json"))
    assert set(QUICK[kind]) <= {file.stem for file in files}
    wanted = [file for file in files if (file.stem in QUICK[kind]) is quick]
    return [json.loads(file.read_text(encoding="utf-8")) for file in wanted]


def made(kind: str, device: str, quick: bool) -> dict[str, dict[str, torch.Tensor]]:
    handler = AceStepHandler()
    path = HERE / "checkpoints" / f"acestep-v15-{kind}"
    message, ok = handler.initialize_service(None, str(path), device, dtype="float32")
    assert ok, message
    found = {}
    for case in cases(kind, quick):
        result = handler.generate_music(**arguments_of(case))
        assert result["success"], result["error"]
        audio = {f"song {n}": item["tensor"] for n, item in enumerate(result["audios"])}
        found[case["name"]] = {n: result["extra_outputs"][n] for n in NAMES} | audio
    return found


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", QUICK)
def test_the_mac_is_bit_equal(kind: str, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both convolve in MPS's layout: in the other the host's kernels round otherwise.
    monkeypatch.setenv("ACESTEP_CHANNELS_LAST", "0")
    expected = made(kind, "cpu", quick)
    with simulate.mps(macos="15.5", memory_gb=16, fallback=False) as simulation:
        monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "80")
        actual = made(kind, "mps", quick)
    assert not simulation.recorder.fallbacks
    for name, tensors in expected.items():
        for what, tensor in tensors.items():
            assert torch.equal(actual[name][what], tensor), (name, what)
