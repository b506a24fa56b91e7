"""The built-in checkpoint: small, offline, and of the real architecture."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

RECIPE_VERSION = 5
"""Part of the cached folder's name: a changed recipe never meets an old cache."""


MODEL_VERSION = "built-in"
"""How the `model_version` of checkpoints of this recipe begins."""


def path(cache: Path) -> Path:
    """The folder of the built-in checkpoint in diffusers layout, made on first use.

    Args:
        cache: the folder that holds (or will hold) the checkpoint.
    """
    target = cache / f"demo-{RECIPE_VERSION}"
    if not target.is_dir():
        from acestep.demo.parts import build_trained

        make_folder(target, build_trained)
    return target


def make_folder(target: Path, build: Callable[[Path], None]) -> None:
    """Build a folder beside its place and rename it there.

    Several processes may do so at once, and an interrupted build leaves nothing that looks
    finished.

    Args:
        target: the folder to make; its parent is made too.
        build: writes the folder whose path it is given.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        build(work / "made")
        # Another process may have been faster; its result is the same.
        with contextlib.suppress(OSError):
            os.rename(work / "made", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
