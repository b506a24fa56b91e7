"""diffusers' VAE and PyTorch's warning about the form of weight normalisation that it uses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def old_weight_norm() -> Iterator[None]:
    """Build or load diffusers' VAE without the warning: its checkpoints have the old form."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.* is deprecated", FutureWarning)
        yield
