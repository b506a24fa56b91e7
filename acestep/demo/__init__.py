"""The built-in checkpoint: small, offline, and of the real architecture."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

RECIPE_VERSION = 2
"""Part of the cached folder's name: a changed recipe never meets an old cache."""


def path(cache: Path) -> Path:
    """The folder of the built-in checkpoint in diffusers layout, made on first use.

    It is built in a temporary folder and renamed into place, so that several processes
    may ask at once and an interrupted build leaves nothing that looks finished.

    Args:
        cache: the folder that holds (or will hold) the checkpoint.
    """
    target = cache / f"demo-{RECIPE_VERSION}"
    if target.is_dir():
        return target
    from acestep.demo.recipe import build

    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".demo-", dir=cache))
    try:
        build(work / "demo")
        # Another process may have been faster; its result is the same.
        with contextlib.suppress(OSError):
            os.rename(work / "demo", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
