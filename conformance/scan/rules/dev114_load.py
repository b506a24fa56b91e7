"""DEV114: torch.load without map_location."""

from __future__ import annotations

import ast

from conformance.scan.context import Context
from conformance.scan.findings import Edit, Fix, Severity
from conformance.scan.rule import Bad, Rule

_LOADS = frozenset({"torch.load", "torch.serialization.load"})


def _call(context: Context, node: ast.Call) -> None:
    if context.dotted(node.func) not in _LOADS or len(node.args) != 1:
        return
    if any(keyword.arg in (None, "map_location") for keyword in node.keywords):
        return
    if isinstance(node.args[0], ast.Starred):
        return
    end = context.span(node.args[0])[1]
    context.report(
        RULE,
        node,
        "torch.load without map_location restores tensors to the device they were saved from",
        fix=Fix((Edit(end, end, ', map_location="cpu"'),)),
    )


RULE = Rule(
    code="DEV114",
    name="load-without-map-location",
    severity=Severity.WARNING,
    summary="torch.load has no map_location",
    why=(
        "A file saved on CUDA asks for CUDA when it is loaded, and loading raises on a machine "
        "without it."
    ),
    remedy='Pass `map_location="cpu"` and move the tensors afterwards.',
    invalid=(
        Bad(
            "import torch\nstate = torch.load('x.pt')",
            2,
            "import torch\nstate = torch.load('x.pt', map_location=\"cpu\")",
        ),
        Bad(
            "import torch\nstate = torch.load('x.pt', weights_only=True)",
            2,
            "import torch\nstate = torch.load('x.pt', map_location=\"cpu\", weights_only=True)",
        ),
        Bad("from torch import load\nstate = load('x.pt')", 2),
        Bad("import torch as t\nstate = t.load('x.pt')", 2),
    ),
    valid=(
        "import torch\nstate = torch.load('x.pt', map_location='cpu')",
        "import torch\nstate = torch.load('x.pt', 'cpu')",
        "import torch\ndef f(path, **options):\n    return torch.load(path, **options)",
        "import json\nstate = json.load(open('x.json'))",
    ),
    hooks={"call": _call},
    fixable=True,
)
