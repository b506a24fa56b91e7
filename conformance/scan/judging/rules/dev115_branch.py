"""DEV115: a branch that does something for CUDA and nothing for any other accelerator."""

from __future__ import annotations

import ast

from conformance.scan.findings import Edit, Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.judging.rules.families import MEMORY, RANDOM, backend_of, is_amp, is_probe

_NEUTRAL = frozenset({"empty_cache", "synchronize"})


def _call(context: Context, node: ast.Call) -> None:
    dotted = context.dotted(node.func)
    if dotted is None or backend_of(dotted) != "cuda" or context.decorating:
        return
    name = dotted.rpartition(".")[2]
    if is_probe(dotted) or is_amp(dotted) or name in MEMORY or name in RANDOM:
        return
    probe = context.probed_only("cuda")
    if probe is None or context.call_serves(node, frozenset({name})):
        return
    context.report(
        RULE,
        node,
        f"{dotted}() is called where CUDA is found; other accelerators get nothing",
        fix=_fix(context, node, name, probe),
    )


def _fix(context: Context, node: ast.Call, name: str, probe: ast.AST) -> Fix | None:
    """Safe: the test and the call both move to ``torch.accelerator``, when they stand alone."""
    torch = context.torch_name()
    branch = context.branches[-1] if context.branches else None
    if torch is None or name not in _NEUTRAL or node.args or node.keywords or branch is not probe:
        return None
    owner = context.scope.node
    for parent in context.parts_of(owner):
        if isinstance(parent, ast.If) and parent.test is branch and isinstance(probe, ast.Call):
            alone = not parent.orelse and all(
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Call)
                and (context.dotted(statement.value.func) or "").rpartition(".")[2] in _NEUTRAL
                and backend_of(context.dotted(statement.value.func) or "") == "cuda"
                and not statement.value.args
                for statement in parent.body
            )
            if not alone or context.dotted(probe.func) != "torch.cuda.is_available":
                return None
            edits: list[Edit] = [context.replace(probe.func, f"{torch}.accelerator.is_available")]
            for statement in parent.body:
                assert isinstance(statement, ast.Expr)
                assert isinstance(statement.value, ast.Call)
                called = (context.dotted(statement.value.func) or "").rpartition(".")[2]
                edits.append(context.replace(statement.value.func, f"{torch}.accelerator.{called}"))
            return Fix(tuple(edits), safe=True)
    return None


RULE = Rule(
    code="DEV115",
    name="cuda-only-branch",
    severity=Severity.NOTE,
    summary="a branch serves CUDA and no other accelerator",
    why=(
        "The guard is right and nothing fails; but what the branch does (giving memory back, "
        "waiting for the device) other accelerators need as well, and nobody does it for them."
    ),
    remedy="Use `torch.accelerator`, which serves whichever accelerator is there.",
    invalid=(
        Bad(
            "import torch\ndef f():\n    if torch.cuda.is_available():\n        torch.cuda.empty_cache()",
            4,
            "import torch\ndef f():\n    if torch.accelerator.is_available():\n        torch.accelerator.empty_cache()",
        ),
        Bad(
            "import torch\nif torch.cuda.is_available():\n    torch.cuda.synchronize()\n    torch.cuda.ipc_collect()",
            3,
        ),
    ),
    valid=(
        "import torch\ndef f():\n    if torch.cuda.is_available():\n        torch.cuda.empty_cache()\n"
        "    elif torch.backends.mps.is_available():\n        torch.mps.empty_cache()",
        "import torch\ndef f(x):\n    if x.is_cuda:\n        torch.cuda.synchronize()",
        "import torch\ndef f():\n    if torch.accelerator.is_available():\n        torch.accelerator.synchronize()",
    ),
    hooks={"call": _call},
    fixable=True,
)
