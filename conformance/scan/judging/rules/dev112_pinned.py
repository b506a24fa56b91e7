"""DEV112: pinned memory and asynchronous copies that presume CUDA."""

from __future__ import annotations

import ast

from conformance.scan.findings import Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.reading.nodes import parts_of


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _call(context: Context, node: ast.Call) -> None:
    if context.guarded("cuda", "mps"):
        return
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if name == "pin_memory" and isinstance(function, ast.Attribute):
        if _is_asked_for(context):
            return
        if not node.args or context.resolver.literal(node.args[0], context.scope) == "cuda":
            context.report(RULE, node, "pin_memory() raises or pins nothing where there is no CUDA")
        return
    _pinned(context, keywords.get("pin_memory"), name)
    _copied(context, node, keywords, name)


def _pinned(context: Context, pinned: ast.expr | None, name: str) -> None:
    # `save_on_cpu` asks for the accelerator itself before it pins.
    if (
        pinned is not None
        and _is_true(pinned)
        and name != "save_on_cpu"
        and not _is_asked_for(context)
    ):
        context.report(
            RULE,
            pinned,
            "pin_memory=True presumes CUDA",
            # A loader warns and goes on without.
            severity=Severity.NOTE
            if name.lower().endswith(("loader", "sampler")) or name in ("dict", "ConfigDict")
            else Severity.WARNING,
            fix=_pin_fix(context, pinned),
        )


def _copied(
    context: Context, node: ast.Call, keywords: dict[str | None, ast.expr], name: str
) -> None:
    device = keywords.get("device") or (node.args[0] if node.args else None)
    to_host = (name == "cpu" and isinstance(node.func, ast.Attribute)) or (
        name == "to"
        and device is not None
        and context.resolver.literal(device, context.scope) == "cpu"
    )
    blocking = keywords.get("non_blocking")
    if to_host and blocking is not None and _is_true(blocking) and not _synchronizes(context):
        context.report(
            RULE,
            blocking,
            "an asynchronous copy to the host may be read before it is done",
            fix=Fix((context.replace(blocking, "False"),)),
        )


def _is_asked_for(context: Context) -> bool:
    """Whether the caller wants pinning: by a condition, or because the function does just that."""
    function = context.scope.enclosing("function")
    if function is not None and "pin" in function.name:
        return True
    return any(
        "pin" in getattr(node, "id", getattr(node, "attr", ""))
        for test in context.branches
        for node in parts_of(test)
    )


def _synchronizes(context: Context) -> bool:
    """Whether the function, or another method of its class, waits for a device, stream or event at some point."""
    owner = context.scope.enclosing("class") or context.scope
    return any(
        isinstance(node, ast.Attribute)
        and node.attr
        in ("synchronize", "wait_stream", "record", "wait_event", "wait", "record_stream")
        for node in context.parts_of(owner.node)
    )


def _pin_fix(context: Context, node: ast.expr) -> Fix | None:
    torch = context.torch_name()
    return None if torch is None else Fix((context.replace(node, f"{torch}.cuda.is_available()"),))


RULE = Rule(
    code="DEV112",
    name="pinned-memory",
    severity=Severity.WARNING,
    summary="pinned memory or an asynchronous copy presumes CUDA",
    why=(
        "Pinning speeds copies to CUDA. MPS shares memory with the host and has nothing to pin; "
        "without any accelerator `pin_memory()` raises. A non-blocking copy to the host hands out "
        "numbers that are not there yet unless something waits for it."
    ),
    remedy=(
        "Pin only when the device's type is cuda; synchronise after a non-blocking copy to the "
        "host, or let it block."
    ),
    invalid=(
        Bad("def f(x):\n    return x.pin_memory()", 2),
        Bad(
            "import torch\nx = torch.empty(3, pin_memory=True)",
            2,
            "import torch\nx = torch.empty(3, pin_memory=torch.cuda.is_available())",
        ),
        Bad(
            "def f(x):\n    return x.to('cpu', non_blocking=True)",
            2,
            "def f(x):\n    return x.to('cpu', non_blocking=False)",
        ),
        Bad("def f(x):\n    return x.to(device='cpu', non_blocking=True)", 2),
    ),
    valid=(
        "import torch\ndef f(x):\n    return x.pin_memory() if torch.cuda.is_available() else x",
        "from torch.utils.data import DataLoader\nimport torch\nd = DataLoader([], pin_memory=torch.cuda.is_available())",
        "def f(x, device):\n    return x.to(device, non_blocking=True)",
        "from torch.autograd.graph import save_on_cpu\nwith save_on_cpu(pin_memory=True):\n    pass",
        "def f(x, stream):\n    y = x.to('cpu', non_blocking=True)\n    stream.synchronize()\n    return y",
    ),
    hooks={"call": _call},
    fixable=True,
)
