"""DEV106: two-valued reasoning: what is not the CPU is taken for CUDA."""

from __future__ import annotations

import ast

from conformance.scan.findings import Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.mending import mend_device
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.judging.verdicts import Placement
from conformance.scan.knowing.facts import Facts
from conformance.scan.knowing.vocabulary import ACCELERATORS

#: A wrong answer does not fail by itself: whoever asked gets the path of another device.
_ANSWER = Severity.WARNING


def _not_cpu(facts: Facts) -> bool:
    """Whether the CPU is all that is ruled out, and no accelerator known or ruled out."""
    named = {*facts.known, *facts.excluded}
    return "cpu" in facts.excluded and not named & {*ACCELERATORS, "*"}


def _placement(context: Context, placement: Placement) -> None:
    if placement.kind != "two-valued":
        return
    said = f"what is not the CPU is taken for {placement.device}"
    if placement.probe is not None:
        said = f"what is not {placement.device} is taken for the CPU"
    context.report(
        RULE,
        placement.node,
        f"{placement.how}: {said}",
        severity=placement.severity,
        fix=mend_device(context, placement.node, placement.how, placement.scope),
        scope=placement.scope,
    )


def _compare(context: Context, node: ast.Compare) -> None:
    """A comparison with CUDA that is an answer, not the choice of a branch."""
    if _is_cuda_attribute(node.left) and any(_is_cuda_attribute(c) for c in node.comparators):
        context.report(
            RULE,
            node,
            "is_cuda compares two devices, though neither may be CUDA or the CPU",
            severity=_ANSWER,
        )
        return
    if id(node) in context.consumed or not _not_cpu(context.facts):
        return
    if isinstance(context.statement, ast.Assert):
        return  # a refusal, not a reasoning
    devices = [
        context.resolver.literal(part, context.scope) for part in [node.left, *node.comparators]
    ]
    if "cuda" in devices and not any(isinstance(op, ast.NotEq | ast.NotIn) for op in node.ops):
        message = "every device that is not the CPU is expected to be cuda"
        context.report(RULE, node, message, severity=_ANSWER)


def _is_cuda_attribute(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "is_cuda"


def _attribute(context: Context, node: ast.Attribute) -> None:
    if node.attr != "is_cuda" or id(node) in context.consumed or not _not_cpu(context.facts):
        return
    message = "is_cuda decides for every device that is not the CPU"
    context.report(RULE, node, message, severity=_ANSWER)


def _if(context: Context, node: ast.If) -> None:
    """``if x.is_cuda: mask = mask.cuda()``, with nothing for where ``x`` is otherwise."""
    test = node.test
    if not isinstance(test, ast.Attribute) or test.attr != "is_cuda" or node.orelse:
        return
    if context.facts.guard("cuda") is not None or context.in_tests:
        return
    for statement in node.body:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id=stored)],
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=moved), attr="cuda")) as call,
            ) if stored == moved and stored != getattr(test.value, "id", ""):
                message = f"`{moved}` stays on the host where a tensor is on a Mac's GPU"
                context.report(RULE, call, message, severity=_ANSWER)


RULE = Rule(
    code="DEV106",
    name="not-cpu-means-cuda",
    severity=Severity.ERROR,
    summary="what is not the CPU is taken for CUDA",
    why=(
        "With two devices in mind, `not cpu` and `cuda` are the same thing. On MPS the code then "
        "sees a tensor on the wrong device for ever (and moves it again at every call), or asks "
        "CUDA for something. The wrong answer alone is a warning, what is moved by it an error."
    ),
    remedy=(
        "Compare device types with each other (`tensor.device.type == torch.device(target).type`) "
        "instead of deriving one from what it is not."
    ),
    invalid=(
        Bad(
            "def _is_on_target_device(self, tensor, target_device):\n    if target_device == 'cpu':\n"
            "        return tensor.device.type == 'cpu'\n    return tensor.device.type == 'cuda'",
            4,
        ),
        Bad(
            "def same(tensor, target):\n    if target == 'cpu':\n        return not tensor.is_cuda\n"
            "    return tensor.is_cuda",
            4,
        ),
        Bad(
            "def same(t, d):\n    return t.device.type == 'cpu' if d == 'cpu' else t.device.type == 'cuda'",
            2,
        ),
        Bad(
            "def same(t, d):\n    want = 'cpu' if d == 'cpu' else 'cuda'\n    return t.to(want)", 2
        ),
        Bad("def f(x, device):\n    if device != 'cpu':\n        x = x.cuda()\n    return x", 3),
        Bad("def same(a, b):\n    return a.is_cuda == b.is_cuda", 2),
        Bad(
            "import torch\ndef like(x):\n    device = 'cuda' if x.is_cuda else 'cpu'\n    return torch.ones(1, device=device)",
            3,
        ),
        Bad(
            "import torch\ndef loss(x):\n    one = torch.eye(x.size(1))\n    if x.is_cuda:\n        one = one.cuda()\n"
            "    return x - one",
            5,
        ),
        Bad("def f(x, use_cpu):\n    return x.to('cpu' if use_cpu else 'cuda')", 2),
    ),
    valid=(
        "import torch\ndef same(tensor, target):\n    return tensor.device.type == torch.device(target).type",
        "def f(device):\n    if device == 'cpu':\n        return 1\n    elif device == 'cuda':\n        return 2\n    return 3",
        "def f(x):\n    return x.is_cuda",
        "def f(device):\n    if device == 'cpu':\n        return 1\n    assert device == 'cuda', 'only these two'\n    return 2",
        "def device_for(flag):\n    device = flag if flag in ('cpu', 'mps') else 'cuda'\n    return device",
        "def fast(x):\n    if x.device.type == 'cpu':\n        return x.numel() < 9\n"
        "    return x.device.type == 'cuda' and x.is_contiguous()",
        "import torch\ndef dtype(device):\n    try:\n        return torch.get_autocast_dtype(device)\n"
        "    except (AttributeError, TypeError):\n        if device == 'cpu':\n            return torch.bfloat16\n"
        "        assert device == 'cuda'\n        return torch.float16",
        "def f(x, device):\n    if device != 'cpu':\n        x = x.to(device)\n    return x",
        "def f(x, y):\n    if x.is_cuda:\n        y = y.cuda()\n    else:\n        y = y.to(x.device)\n    return x + y",
        "import torch\ndef f(x, y):\n    if not torch.cuda.is_available():\n        return y\n    if x.is_cuda:\n"
        "        y = y.cuda()\n    return x + y",
    ),
    hooks={
        "placement": _placement,
        "compare": _compare,
        "attribute": _attribute,
        "if": _if,
    },
    fixable=True,
)
