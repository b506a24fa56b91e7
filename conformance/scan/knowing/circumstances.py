"""What around a call says that it places nothing, or nothing on CUDA alone."""

from __future__ import annotations

import ast

from conformance.scan.knowing.point import Point
from conformance.scan.knowing.vocabulary import ACCELERATORS


def forks_others(point: Point) -> bool:
    """Whether the random state of another accelerator is kept beside CUDA's."""
    owner = point.scope.enclosing("function") or point.scope
    return any(
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "fork_rng"
        and any(
            isinstance(part, ast.Constant) and part.value in ACCELERATORS - {"cuda"}
            for part in ast.walk(node)
        )
        for node in ast.walk(owner.node)
    )


def is_mocked(point: Point, method: str) -> bool:
    """Whether a test replaces the method that moves tensors or modules: nothing is moved."""
    owner = point.scope.enclosing("function")
    text = point.source.text
    if owner is None or not ("patch" in text or "setattr" in text or ".object(" in text):
        return False
    for part in ast.walk(owner.node):
        if isinstance(part, ast.Call) and getattr(
            part.func, "attr", getattr(part.func, "id", "")
        ) in ("patch", "setattr", "object"):
            texts = [a.value for a in part.args if isinstance(a, ast.Constant)]
            if any(isinstance(t, str) and t.rpartition(".")[2] == method for t in texts):
                return True
    return False


def is_of_another_library(point: Point, held: ast.expr) -> bool:
    """Whether a test says that a value is of another library's class, with methods of its own."""
    wanted = ast.dump(held)
    for branch in point.branches:
        match branch:
            case ast.Call(func=ast.Name(id="isinstance"), args=[first, kind]):
                if ast.dump(first) == wanted:
                    name = point.dotted(kind) or ""
                    return "." in name and not name.startswith((".", "torch."))
    return False
