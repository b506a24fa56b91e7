"""The adapters that the page offers: those that lie where a person puts them on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from acestep.checkpoint.folders import checkpoint_roots
from acestep.errors import RequestError

FOLDER = "loras"
_SUFFIX = ".lora"
_WEIGHTS = ".safetensors"


def found(project_root: str | Path | None = None) -> dict[str, Path]:
    """Adapters by name: what `loras` folders hold, and `*.lora` beside them and where we are.

    A visitor chooses one by its name; no path of theirs is ever opened.

    Args:
        project_root: see `checkpoint_roots`.

    Returns:
        Nothing where peft, which puts them on, is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        return {}
    named: dict[str, Path] = {}
    for path in _candidates(project_root):
        named.setdefault(path.name.removesuffix(_WEIGHTS), path)
    return dict(sorted(named.items()))


def path_of(name: str, project_root: str | Path | None = None) -> Path:
    """Where an adapter lies.

    Raises:
        RequestError: there is none of that name.
    """
    path = found(project_root).get(name)
    if path is None:
        raise RequestError(f"there is no adapter '{name}' here; choose one from the list")
    return path


def _candidates(project_root: str | Path | None) -> Iterator[Path]:
    places = [Path(), *checkpoint_roots(project_root)]
    for place in places:
        yield from _usable(place.glob(f"*{_SUFFIX}"))
        yield from _usable((place / FOLDER).glob("*"))


def _usable(paths: Iterator[Path]) -> list[Path]:
    """Those that are safetensors files, or folders with one."""
    return [
        path
        for path in sorted(paths)
        if (path.is_file() and path.suffix in (_WEIGHTS, _SUFFIX))
        or (path.is_dir() and (any(path.glob(f"*{_WEIGHTS}")) or (path / "adapter").is_dir()))
    ]
