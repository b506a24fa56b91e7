"""The original's cases by the MLX engine, and whole songs beside the torch engine's.

A quarter of an hour and more of MLX's CPU kernels, so by hand: `python -m pytest -m soak
tests/acestep/original/test_original_by_mlx.py`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inputs import arguments_of
from test_original import BOUNDS, CASES, HERE, original

from acestep.device import resolve
from acestep.handler import AceStepHandler

pytest.importorskip("mlx.core", reason="there is no MLX for this system")
pytestmark = pytest.mark.soak


@lru_cache
def by_mlx(path: str) -> AceStepHandler:
    """A handler with a checkpoint under MLX, float32."""
    handler = AceStepHandler()
    handler.load(path, resolve("cpu", dtype="float32", engine="mlx"))
    return handler


def songs(result: dict[str, Any]) -> torch.Tensor:
    assert result["success"], result["error"]
    return torch.stack([audio["tensor"] for audio in result["audios"]])


@pytest.mark.parametrize("file", CASES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_same_music_by_mlx(file: Path) -> None:
    """Conditions and latents of the original, and the audio of torch."""
    case = json.loads(file.read_text(encoding="utf-8"))
    wanted, kind = np.load(file.with_suffix(".npz")), case["kind"]
    handler = by_mlx(str(HERE / "checkpoints" / f"acestep-v15-{kind}"))
    result = handler.generate_music(**arguments_of(case))
    theirs = original(kind).generate_music(**arguments_of(case))
    assert float((songs(result) - songs(theirs)).abs().max()) < 1e-3
    for name, bound in BOUNDS.items():
        found = result["extra_outputs"][name].numpy()
        assert found.shape == wanted[name].shape
        assert float(np.abs(found - wanted[name]).max()) <= bound, name
