"""DEV113: a CUDA-only package imported at module level."""

from __future__ import annotations

import ast

from conformance.scan.findings import Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Bad, Good, Rule
from conformance.scan.knowing.facts import ANY
from conformance.scan.knowing.markers import is_script_for_cuda
from conformance.scan.knowing.packages import (
    KERNELS,
    MISSING,
    POORER,
    imported_modules,
    imported_packages,
)

_NAMED = MISSING | POORER | KERNELS


def _import(context: Context, node: ast.Import | ast.ImportFrom) -> None:
    if context.scope.kind == "function" or _optional(context):
        return
    for package in (*imported_packages(node), *imported_modules(node)):
        if package in context.extensions:
            message = f"{package}, which is built for CUDA, is imported with the module"
            context.report(RULE, node, message, severity=_severity(context))
        elif package in _NAMED and package not in context.source.path.split("/"):
            context.report(
                RULE,
                node,
                f"{package}, which needs CUDA, is imported with the module",
                severity=Severity.NOTE if _is_aware(context, package) else _severity(context),
            )


def _compiled(context: Context, node: ast.Call) -> None:
    """``_ext = load("ext", sources=["ext.cu"])`` of ``torch.utils.cpp_extension``."""
    package, _, name = (context.dotted(node.func) or "").rpartition(".")
    if package != "torch.utils.cpp_extension" or name not in ("load", "load_inline"):
        return
    if context.scope.kind == "function" or _optional(context):
        return
    if any(word in context.segment(node) for word in (".cu'", '.cu"', "cuda")):
        message = "an extension for CUDA is compiled as the module is imported"
        context.report(RULE, node, message, severity=_severity(context))


def _severity(context: Context) -> Severity | None:
    """An error where the whole package, or all its tests, load the file, a note in a program that
    refuses to go on without CUDA; whether anyone without CUDA imports another module is not to be
    seen in it."""
    if is_script_for_cuda(context):
        return Severity.NOTE
    everyone = context.source.path.endswith(("__init__.py", "conftest.py"))
    return Severity.ERROR if everyone else None


def _is_aware(context: Context, package: str) -> bool:
    """Whether the import is what the file is for: it holds kernels, and who imports it matters."""
    return package not in MISSING or (package == "triton" and "@triton.jit" in context.source.text)


def _optional(context: Context) -> bool:
    """Whether the import stands under a condition or a ``try`` of any kind."""
    return bool(context.branches) or ANY in context.facts.known or context.guarded("cuda")


RULE = Rule(
    code="DEV113",
    name="cuda-only-import",
    severity=Severity.WARNING,
    summary="a CUDA-only package is imported at module level",
    why=(
        "The package has no build for a Mac, so the module, and all that imports it, cannot be "
        "imported there, whichever device was asked for. In an `__init__.py` that is the whole "
        "package, and an error."
    ),
    remedy="Import it inside the function that needs it, or in a `try` that expects ImportError.",
    invalid=(
        Bad("import flash_attn", 1),
        Bad("from flash_attn import flash_attn_func", 1),
        Bad("import os\nimport vllm.engine as engine", 2),
        Bad("import triton\nimport triton.language as tl", 1),
        Bad("import cupy as cp", 1),
        Bad(
            "from torch.utils.cpp_extension import load\nops = load('ops', ['ops.cu'], extra_cuda_cflags=['-O3'])",
            2,
        ),
        Bad("import cupy as cp", 1, path="package/__init__.py"),
    ),
    valid=(
        Good("from mamba_ssm.ops import scan", "mamba_ssm/modules/block.py"),
        "try:\n    import flash_attn\nexcept ImportError:\n    flash_attn = None",
        "def f():\n    import vllm\n    return vllm",
        "from torch.utils.cpp_extension import load\nops = load('ops', ['ops.cpp'])  # not for cuda",
        "from torch.utils.cpp_extension import load\ndef f():\n    return load('ops', ['ops.cu'], with_cuda=True)",
        "import torch\nif torch.cuda.is_available():\n    import flash_attn",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import triton",
        "from .triton import kernels",
        "def is_flash_attn_available():\n    return True\nif is_flash_attn_available():\n    import flash_attn",
    ),
    hooks={"import": _import, "call": _compiled},
)
