"""The language model: the device it picks, the backend it takes, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.entrypoints import covers
from conformance.suite.support import Api, absent_device, generate, song
from conformance.targets import Target, find
from conformance.tree import Absent

INITIALIZE = "llm_inference:LLMHandler.initialize"


def started(api: Api, folder: Path, **options: Any) -> tuple[Any, str, bool]:
    """A handler that was told to load the built-in language model; with its answer."""
    made = api.get("llm_inference:LLMHandler")()
    message, ok = made.initialize(checkpoint_dir=str(folder), lm_model_path="demo", **options)
    return made, message, ok


@covers("S4", "A2", INITIALIZE)
def test_auto_picks_this_device(api: Api, target: Target, tmp_path: Path) -> None:
    best = next(name for name in ("cuda", "mps", "cpu") if find()[name].present)
    if target.name != best and not target.simulated:
        raise Absent(f"auto means {best} on this machine, which is judged in its own column")
    made, message, ok = started(api, tmp_path, backend="pt", device="auto")
    assert ok, message
    assert torch.device(made.device).type == target.device, api.option("auto")


@covers("S4", INITIALIZE)
def test_an_explicit_device_is_used(api: Api, target: Target, tmp_path: Path) -> None:
    made, message, ok = started(api, tmp_path, backend="pt", device=target.device)
    assert ok, message
    assert torch.device(made.device).type == target.device
    assert made.llm_backend == "pt"


@covers("S4", INITIALIZE)
@pytest.mark.names_cuda("the case itself asks for a device that is absent")
def test_an_absent_device_is_refused(api: Api, target: Target, tmp_path: Path) -> None:
    absent = absent_device(target)
    made, message, ok = started(api, tmp_path, backend="pt", device=absent)
    assert not ok, f"asked for {absent}, which is absent, and got {made.device}"
    assert absent in message
    assert len(message.splitlines()) == 1


@covers("S5", INITIALIZE)
def test_backend_by_device(api: Api, target: Target, tmp_path: Path) -> None:
    """Without a wish the device decides; a backend that it cannot run is refused."""
    made, message, ok = started(api, tmp_path, device=target.device)
    assert ok, message
    assert made.llm_backend in (("pt", "vllm") if target.device == "cuda" else ("pt",))
    if target.device != "cuda":
        made, message, ok = started(api, tmp_path, device=target.device, backend="vllm")
        assert not ok
        assert "vllm" in message.lower()


@covers("A1", "A3", INITIALIZE, "llm_inference:LLMHandler.generate_with_stop_condition")
def test_a_song_with_a_plan(api: Api, target: Target, handler: Any, tmp_path: Path) -> None:
    """The plan's codes reach the song, with the language model on the same device."""
    made, message, ok = started(api, tmp_path, backend="pt", device=target.device)
    assert ok, message
    song(generate(api, handler, made, duration=1.0))
