"""The public functions of another tree by area, and what share of them a run has entered."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from conformance.tree import Tree
from conformance.trees.sources import definitions

#: Area to the beginnings of the names of its modules; the first that fits.
AREAS = {
    "scoring": ("dit_alignment_score", "core.scoring", "alignment", "test_time_scaling"),
    "training": ("training", "dataset"),
    "LM": ("llm", "constrained", "lm", "core.lm", "planning"),
    "config": ("gpu_config", "constants", "cli_args", "machine", "core.config", "config"),
    "handler": ("handler", "inference", "core", "service", "audio_utils", "placing"),
}


@dataclass(frozen=True)
class Share:
    """What a run entered of one module: how many of how many public functions."""

    area: str
    module: str
    entered: int
    public: int


def area_of(module: str) -> str:
    """The area of a module by its name, or empty."""
    for area, starts in AREAS.items():
        if module.startswith(starts):
            return area
    return ""


def shares(tree: Tree, entered: Iterable[str]) -> list[Share]:
    """The share of each module of the areas, from `file:qualified name` of what was entered."""
    seen, counts = set(entered), dict[str, list[int]]()
    for found in definitions(tree, "def "):
        if isinstance(found.node, ast.ClassDef) or not area_of(found.module):
            continue
        if any(part.startswith("_") and part != "__init__" for part in found.name.split(".")):
            continue
        if _is_nested(found.name, found.node) or "property" in _decorators(found.node):
            continue
        file = found.place.rpartition(":")[0]
        count = counts.setdefault(found.module, [0, 0])
        count[0] += f"{file}:{found.name}" in seen
        count[1] += 1
    return [Share(area_of(m), m, e, p) for m, (e, p) in sorted(counts.items())]


def _is_nested(name: str, node: ast.AST) -> bool:
    """Whether a function stands in another, whose names begin with small letters."""
    parts = name.split(".")[:-1]
    return any(part[:1].islower() for part in parts)


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
