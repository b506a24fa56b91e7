"""Whole songs of the built-in checkpoint by both engines, on the CPU.

Each step is asked of both engines from one state, which holds MLX to the largest difference. Of
whole songs the root mean square counts: this checkpoint multiplies rounding by a hundred on its
way, so that noise that is rounded otherwise moves single latents of one engine by 3e-4.

Minutes of MLX's CPU kernels, so by hand: `python -m pytest -m soak
tests/acestep/engines/mlx/test_mlx_built_in.py -s` prints what the README says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mlx_sides import worst
from safetensors.torch import save_file
from test_mlx_adapters import factors

from acestep.console.terminal import result
from acestep.device import resolve
from acestep.diffusion.making import Maker
from acestep.handler import AceStepHandler
from acestep.song.outcome import Generation
from acestep.song.request import Request

pytest.importorskip("mlx.core", reason="there is no MLX for this system")
pytestmark = pytest.mark.soak

SECONDS = 6.0
PLAIN = Request("a harp plays a slow tune in A minor", (0,), duration=SECONDS)
TOLD = Request(
    "a happy flute tune", (3,), "[verse]\nla la", SECONDS, 104, "G major", "3", "en", shift=1.0
)
CASES: dict[str, Callable[[torch.Tensor], Request]] = {
    "plain": lambda source: PLAIN,
    "told": lambda source: TOLD,
    "two": lambda source: replace(PLAIN, seeds=(4, 5)),
    "longer": lambda source: replace(PLAIN, duration=20.0),
    "sde": lambda source: replace(PLAIN, infer_method="sde"),
    "reference": lambda source: replace(TOLD, reference_audio=source),
    "cover": lambda source: replace(PLAIN, task="cover", src_audio=source),
    "half a cover": lambda source: replace(
        PLAIN, task="cover", src_audio=source, cover_strength=0.5
    ),
    "repaint": lambda source: replace(
        TOLD, task="repaint", src_audio=source, repaint=(1.0, 3.0), duration=None
    ),
    "adapter": lambda source: PLAIN,
}


class Beside:
    """An engine that asks another the same at each step, from its own state, and sums up how far
    the other's step is away."""

    def __init__(self, engine: Any, other: Any) -> None:
        self._engine, self._other = engine, other
        self.apart = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def velocity(self, condition: Any, context: torch.Tensor, times: Any) -> Any:
        engine, other = self._engine, self._other
        mine = engine.velocity(condition, context, times)
        with other.working():
            theirs = other.velocity(other.array(engine.host(condition)), context, times)

        def both(state: Any, step: int) -> Any:
            made = mine(state, step)
            with other.working():
                found = other.host(theirs(other.array(engine.host(state)), step))
            # A step is shorter than 1, so its latents are no further apart than this.
            self.apart = max(self.apart, worst(found, engine.host(made)))
            return made

        return both


@lru_cache
def handlers(path: str) -> tuple[AceStepHandler, AceStepHandler]:
    made = AceStepHandler(), AceStepHandler()
    for handler, engine in zip(made, ("torch", "mlx"), strict=True):
        handler.load(path, resolve("cpu", dtype="float32", engine=engine))
    return made


def heard(made: Generation) -> torch.Tensor:
    return torch.stack([song.audio for song in made.songs])


def rms(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.shape == second.shape
    return float((first - second).square().mean().sqrt())


@pytest.mark.parametrize("name", CASES)
def test_the_same_song(trained: Path, tmp_path: Path, name: str) -> None:
    by_torch, by_mlx = handlers(str(trained))
    request = CASES[name](heard(by_torch.generate(replace(TOLD, seeds=(9,))))[0])
    if name == "adapter":
        assert by_torch.pipeline is not None
        save_file(factors("lora", by_torch.pipeline.transformer), tmp_path / "my.safetensors")
        for handler in (by_torch, by_mlx):
            handler.load_lora(tmp_path / "my.safetensors", 0.3)
    try:
        songs = [handler.generate(request) for handler in (by_torch, by_mlx)]
        beside: Any = Beside(by_torch.engine, by_mlx.engine)
        by_torch.maker, kept = Maker(beside, by_torch.policy), by_torch.maker
        try:
            again = by_torch.generate(request)
        finally:
            by_torch.maker = kept
    finally:
        for handler in (by_torch, by_mlx):
            handler.unload_lora()
    latents = [song.tensors["pred_latents"] for song in songs]
    assert torch.equal(again.tensors["pred_latents"], latents[0])
    audio = [heard(song) for song in songs]
    result(
        f"\n{name}: a step {beside.apart:.1e}; latents {rms(*latents):.1e} rms, "
        f"{worst(*latents):.1e} at most; audio {rms(*audio):.1e} rms, {worst(*audio):.1e} at most"
    )
    assert 0 < beside.apart <= 1e-4
    assert rms(*latents) <= 1e-4
    assert worst(*audio) <= 1e-3
