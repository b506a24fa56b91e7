"""Both engines over the original's tiny checkpoints, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from mlx_sides import load

Engines = tuple[Any, Any]


@pytest.fixture(scope="session")
def engines() -> Callable[[str], Engines]:
    """The torch and the MLX engine of a checkpoint, for example `base`."""
    pytest.importorskip("mlx.core", reason="there is no MLX for this system")
    return lru_cache(lambda name: (load(name, "torch"), load(name, "mlx")))


@pytest.fixture(scope="session")
def state() -> torch.Tensor:
    """Latents to start from, `[1, frames, channels]`; an odd number of frames."""
    return torch.randn(1, 31, 8, generator=torch.Generator().manual_seed(5))
