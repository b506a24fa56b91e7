"""The folders that checkpoints are kept in."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder for what this package makes or downloads (`ACESTEP_CACHE` moves it)."""
    if text := os.environ.get("ACESTEP_CACHE", "").strip():
        return Path(text).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(base).expanduser() / "acestep"


def checkpoint_roots(project_root: str | Path | None = None) -> list[Path]:
    """The folders searched for checkpoints, in order.

    `ACESTEP_CHECKPOINTS` (folders as in PATH), then `checkpoints` under the project root,
    under the current folder and in the cache.
    """
    listed = os.environ.get("ACESTEP_CHECKPOINTS", "").split(os.pathsep)
    roots = [Path(text).expanduser() for text in listed if text.strip()]
    if project_root:
        roots += [Path(project_root) / "checkpoints", Path(project_root)]
    roots += [Path("checkpoints"), cache_dir() / "checkpoints"]
    return list(dict.fromkeys(roots))
