"""Importing: every module of the tree, in a fresh process that watches for CUDA."""

from __future__ import annotations

from conformance.entrypoints import covers
from conformance.launch import launch
from conformance.targets import Target
from conformance.tree import Tree

# Libraries that only an optional part needs; without them that part is absent.
OPTIONAL = ("gradio", "mlx", "mlx_lm", "peft", "vllm")


@covers("A3")
def test_every_module_imports(tree: Tree, target: Target) -> None:
    """No module is broken, and none reaches for CUDA while it is imported."""
    found = launch(tree, target, None)
    assert found.status == 0, found.errors
    assert not found.touches, "\n".join(found.touches)
    broken = {
        name: why
        for name, why in found.surface["unimportable"].items()
        if not any(why.endswith(f"no module named '{library}'") for library in OPTIONAL)
    }
    assert not broken, "\n".join(broken.values())
