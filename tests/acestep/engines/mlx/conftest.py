"""Both engines over the original's tiny checkpoints, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

ORIGINAL = Path(__file__).parents[2] / "original" / "checkpoints"

Engines = tuple[Any, Any]


def load(name: str, engine: str, **options: Any) -> Any:
    """One of the original's checkpoints in an engine, float32 unless `dtype` says otherwise."""
    from acestep.checkpoint.finding import find
    from acestep.device import resolve
    from acestep.engines.loading import Options, load_engine

    dtype, bits = options.pop("dtype", "float32"), options.pop("quantization", None)
    policy = resolve("cpu", dtype=dtype, engine=engine, quantization=bits)
    return load_engine(find(str(ORIGINAL / f"acestep-v15-{name}")), policy, Options(**options))


@pytest.fixture(scope="session")
def engines() -> Callable[[str], Engines]:
    """The torch and the MLX engine of a checkpoint, for example `base`."""
    pytest.importorskip("mlx.core", reason="there is no MLX for this system")
    return lru_cache(lambda name: (load(name, "torch"), load(name, "mlx")))


@pytest.fixture(scope="session")
def state() -> torch.Tensor:
    """Latents to start from, `[1, frames, channels]`; an odd number of frames."""
    return torch.randn(1, 31, 8, generator=torch.Generator().manual_seed(5))
