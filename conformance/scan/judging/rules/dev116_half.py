"""DEV116: half precision whatever the device is."""

from __future__ import annotations

import ast

from conformance.scan.findings import Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.knowing.alternatives import mentions
from conformance.scan.knowing.vocabulary import ACCELERATORS

_HALVES = frozenset({"torch.float16", "torch.half"})
#: Functions of PyTorch that make a tensor on the device that they are given.
_MADE = frozenset({"zeros", "ones", "empty", "full", "randn", "rand", "tensor", "as_tensor"})
_KEYWORDS = frozenset({"torch_dtype", "dtype"})
_WORDS = ("half", "fp16", "float16", "precision", "amp", "cpu", "dtype")


def _call(context: Context, node: ast.Call) -> None:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name == "half" and isinstance(function, ast.Attribute) and not node.args:
        of_torch = (context.dotted(function) or "").startswith("torch.")
        if not of_torch and not _is_chosen(context):
            context.report(RULE, node, ".half() is asked for whatever the device is")
        return
    if name == "to":
        for argument in node.args[:2]:
            if context.dotted(argument) in _HALVES and not _is_chosen(context):
                context.report(RULE, argument, "float16 is asked for whatever the device is")
    made = name in _MADE and any(k.arg == "device" for k in node.keywords)
    if not made and name not in ("from_pretrained", "to", "from_single_file"):
        return
    for keyword in node.keywords:
        if keyword.arg in _KEYWORDS and context.dotted(keyword.value) in _HALVES:
            if _is_chosen(context):
                continue
            message = "float16 is asked for whatever the device is"
            context.report(RULE, keyword.value, message)


def _is_chosen(context: Context) -> bool:
    """Whether something decides about it: what is known of the device, or a test of precision."""
    facts = context.facts
    if any(name in ACCELERATORS for name in facts.known) or "cpu" in facts.excluded:
        return True
    return any(mentions(branch, _speaks) for branch in context.branches)


def _speaks(word: str) -> bool:
    low = word.lower()
    return any(part in low for part in _WORDS)


RULE = Rule(
    code="DEV116",
    name="half-everywhere",
    severity=Severity.NOTE,
    summary="half precision is asked for whatever the device is",
    why=(
        "float16 is for accelerators: on the CPU it is slow and lacks operators, and models trained "
        "in bfloat16 overflow in it to NaN, on MPS as on older cards."
    ),
    remedy=(
        "Choose the dtype by the device: bfloat16 or float16 where there is an accelerator, float32 "
        "on the CPU."
    ),
    invalid=(
        Bad("def f(model):\n    return model.half()", 2),
        Bad(
            "import torch\nfrom transformers import AutoModel\nm = AutoModel.from_pretrained('x', torch_dtype=torch.float16)",
            3,
        ),
        Bad("import torch\ndef f(m, device):\n    return m.to(device, dtype=torch.float16)", 3),
        Bad("import torch\ndef f(x, device):\n    return x.to(device, torch.float16)", 3),
        Bad(
            "import torch\ndef f(device):\n    return torch.zeros(3, dtype=torch.float16, device=device)",
            3,
        ),
    ),
    valid=(
        "import torch\ndef f(m):\n    return m.half() if torch.cuda.is_available() else m",
        "def f(model, fp16):\n    if fp16:\n        model = model.half()\n    return model",
        "def f(model, device):\n    if device.type != 'cpu':\n        model = model.half()\n    return model",
        "import torch\ndef f(x):\n    return x.to(torch.bfloat16)",
    ),
    hooks={"call": _call},
)
