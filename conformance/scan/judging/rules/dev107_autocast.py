"""DEV107: automatic mixed precision bound to CUDA."""

from __future__ import annotations

import ast

from conformance.scan.findings import Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.knowing.vocabulary import ACCELERATORS, AUTOCASTS

_OLD = frozenset({"autocast", "GradScaler", "custom_fwd", "custom_bwd"})
_GENERIC = frozenset({"torch.get_autocast_gpu_dtype", "torch.set_autocast_gpu_dtype"})


def _device_argument(node: ast.Call) -> ast.expr | None:
    for keyword in node.keywords:
        if keyword.arg in ("device_type", "device"):
            return keyword.value
    return node.args[0] if node.args else None


def _call(context: Context, node: ast.Call) -> None:
    dotted = context.dotted(node.func)
    if dotted in ("functools.partial", "partial") and node.args:
        # `partial(torch.autocast, "cuda")` is the call to come.
        inner = ast.Call(node.args[0], node.args[1:], node.keywords)
        node, dotted = ast.copy_location(inner, node), context.dotted(node.args[0])
    elif isinstance(node.func, ast.Name) and node.args:
        dotted = _held(context, node.func) or dotted
    if dotted is None or not dotted.startswith("torch.") or _enabled_for_cuda(context, node):
        return
    if set(context.facts.excluded) & ACCELERATORS - {"cuda"}:
        return  # the last of a chain that serves the other accelerators
    if dotted in AUTOCASTS:
        _new(context, node, dotted)
    elif dotted.startswith("torch.cuda.amp.") and dotted.rpartition(".")[2] in _OLD:
        guard = context.facts.guard("cuda")
        if guard is not None and guard.kind == "probe":
            _idle(context, node, dotted.rpartition(".")[2])
        if guard is None:
            name = dotted.rpartition(".")[2]
            context.report(
                RULE,
                node,
                f"torch.cuda.amp.{name} works on CUDA only",
                severity=Severity.NOTE if _is_off(node, 0) else None,
                fix=_old_fix(context, node),
            )
    elif dotted in _GENERIC and not context.guarded("cuda"):
        context.report(RULE, node, f"{dotted}() is CUDA's autocast dtype", severity=Severity.NOTE)


def _held(context: Context, name: ast.Name) -> str | None:
    """``scope = autocast if amp else nullcontext``: what the variable may be."""
    value = context.resolver.only_value(name, context.scope)
    if value is None or not isinstance(value[0], ast.IfExp):
        return None
    names = (context.resolver.dotted(v, value[1]) for v in (value[0].body, value[0].orelse))
    return next((dotted for dotted in names if dotted in AUTOCASTS), None)


def _chosen(context: Context, node: ast.IfExp) -> None:
    """``torch.cuda.amp.autocast if amp else nullcontext``: the call is to come."""
    for value in (node.body, node.orelse):
        _value(context, value)


def _assigned(context: Context, node: ast.Assign | ast.AnnAssign) -> None:
    if node.value is not None:
        _value(context, node.value)


def _value(context: Context, value: ast.expr) -> None:
    name = (context.dotted(value) or "").removeprefix("torch.cuda.amp.")
    if isinstance(value, ast.Attribute) and name in _OLD and not context.guarded("cuda"):
        context.report(RULE, value, f"torch.cuda.amp.{name} works on CUDA only")


def _enabled_for_cuda(context: Context, node: ast.Call) -> bool:
    """Whether ``enabled=`` itself asks for a CUDA device."""
    for keyword in node.keywords:
        if keyword.arg == "enabled" and not isinstance(keyword.value, ast.Constant):
            true, _ = context.conditions.of(keyword.value, context.scope)
            guard = true.guard("cuda")
            return guard is not None and guard.kind == "test"
    return False


def _is_off(node: ast.Call, place: int) -> bool:
    """Whether a call only switches off what on a Mac was never on; ``place`` is where it says so
    (``torch.cuda.amp.autocast(enabled)``, ``torch.autocast(device, dtype, enabled)``)."""
    values = [*node.args[place : place + 1]]
    values += [k.value for k in node.keywords if k.arg == "enabled"]
    return any(isinstance(value, ast.Constant) and value.value is False for value in values)


def _new(context: Context, node: ast.Call, dotted: str) -> None:
    argument = _device_argument(node)
    name = dotted.rpartition(".")[2]
    if argument is None:
        open_ended = any(keyword.arg is None for keyword in node.keywords)
        if name == "GradScaler" and not open_ended and not context.guarded("cuda"):
            context.report(RULE, node, "GradScaler without a device scales for cuda")
        return
    device = context.resolver.literal(argument, context.scope)
    if device is None and isinstance(argument, ast.Name | ast.Attribute):
        value = context.resolver.only_value(argument, context.scope)
        device = context.resolver.literal(*value) if value is not None else None
        if device == "cuda":
            context.consumed.add(id(argument))
    if device is None:
        _selected(context, argument, name)
    elif device == "cuda" and context.probed_only("cuda") is not None:
        _idle(context, argument, name)
    elif device in ACCELERATORS and not context.guarded(device):
        context.report(
            RULE,
            argument,
            f"{name} is bound to {device}",
            severity=Severity.NOTE if _is_off(node, 2) else None,
            fix=_new_fix(context, argument),
        )


def _idle(context: Context, node: ast.AST, name: str) -> None:
    """Where CUDA is found alone: nothing fails, and other accelerators run in full precision."""
    if not context.call_serves(node, frozenset({name})):  # type: ignore[arg-type]
        message = f"{name} for cuda is used where CUDA is found; other accelerators go without"
        context.report(RULE, node, message, severity=Severity.NOTE)


def _selected(context: Context, argument: ast.expr, name: str) -> None:
    devices = {leaf.device for leaf in context.leaves(argument)}
    if (
        "cuda" in devices
        and "cpu" in devices
        and "mps" not in devices
        and not context.choice_serves(argument, context.scope)
    ):
        context.report(RULE, argument, f"{name} knows only cuda and cpu")


def _new_fix(context: Context, argument: ast.expr) -> Fix | None:
    text = _tensor_type(context)
    if text is None or not isinstance(argument, ast.Constant):
        return None
    return Fix((context.replace(argument, text),), safe=True)


def _old_fix(context: Context, node: ast.Call) -> Fix | None:
    """``torch.cuda.amp.autocast(…)`` as ``torch.autocast(x.device.type, …)``."""
    name = (context.dotted(node.func) or "").rpartition(".")[2]
    text, torch = _tensor_type(context), context.torch_name()
    if text is None or torch is None or name != "autocast" or node.args:
        return None
    rest = "".join(f", {context.segment(k)}" for k in node.keywords)  # type: ignore[arg-type]
    return Fix((context.replace(node, f"{torch}.autocast({text}{rest})"),), safe=True)


def _tensor_type(context: Context) -> str | None:
    """Device type of a tensor in scope; a bare ``device`` parameter may be a text or a device."""
    held = context.device_expression()
    if held is None or held == "device":
        torch = context.torch_name()
        return f"{torch}.device(device).type" if held and torch else None
    return f"{held}.type"


RULE = Rule(
    code="DEV107",
    name="cuda-autocast",
    severity=Severity.WARNING,
    summary="autocast or gradient scaling is bound to CUDA",
    why=(
        "Autocast for cuda does nothing on another device but warn: the model then runs in the "
        "wrong precision without an error. `torch.cuda.amp` is deprecated besides."
    ),
    remedy="Pass the device type of the tensors: `torch.autocast(x.device.type, …)`.",
    invalid=(
        Bad(
            "import contextlib\nfrom torch import autocast\ndef f(amp):\n"
            "    scope = autocast if amp else contextlib.nullcontext\n    with scope('cuda'):\n        pass",
            5,
        ),
        Bad(
            "import torch\ndef f(x: torch.Tensor):\n    with torch.autocast('cuda'):\n        return x",
            3,
            "import torch\ndef f(x: torch.Tensor):\n    with torch.autocast(x.device.type):\n        return x",
        ),
        Bad(
            "import torch\nwith torch.autocast(device_type='cuda', dtype=torch.bfloat16):\n    pass",
            2,
        ),
        Bad("import torch\nwith torch.cuda.amp.autocast(enabled=True):\n    pass", 2),
        Bad("from torch.cuda.amp import autocast, GradScaler\nscaler = GradScaler()", 2),
        Bad("from torch.amp import autocast\nwith autocast('cuda'):\n    pass", 2),
        Bad("import torch\nscaler = torch.amp.GradScaler('cuda')", 2),
        Bad(
            "import torch\nfrom functools import partial\nhalf = partial(torch.cuda.amp.autocast, dtype=torch.float16)",
            3,
        ),
        Bad(
            "import functools, torch\nhalf = functools.partial(torch.autocast, device_type='cuda')",
            2,
        ),
        Bad(
            "import torch\nscaler = torch.amp.GradScaler('cuda', enabled=torch.cuda.is_available())",
            2,
        ),
        Bad(
            "import torch\ndef f(x):\n    if torch.cuda.is_available():\n        with torch.autocast('cuda'):\n            return x\n    return x",
            4,
        ),
        Bad("import torch\n@torch.cuda.amp.autocast()\ndef f(x):\n    return x", 2),
        Bad(
            "import torch\nclass F(torch.autograd.Function):\n    @staticmethod\n    @torch.amp.custom_fwd(device_type='cuda')\n"
            "    def forward(ctx, x):\n        return x",
            4,
        ),
        Bad(
            "import torch\ndef f(x, device):\n    with torch.cuda.amp.autocast(dtype=torch.float16):\n        return x",
            3,
            "import torch\ndef f(x, device):\n    with torch.autocast(torch.device(device).type, dtype=torch.float16):\n"
            "        return x",
        ),
        Bad("import torch\ndef f(amp):\n    return torch.cuda.amp.autocast if amp else None", 3),
    ),
    valid=(
        "import contextlib\nfrom torch import autocast\ndef f(amp, device):\n"
        "    scope = autocast if amp else contextlib.nullcontext\n    with scope(device.type):\n        pass",
        "import torch\ndef f(x):\n    with torch.autocast(x.device.type):\n        return x",
        "import torch\ndef f(x):\n    if x.is_cuda:\n        with torch.autocast('cuda'):\n            return x\n    return x",
        "import torch\nwith torch.autocast('cpu'):\n    pass",
        "import torch\ndef scaler(device):\n    if device.type == 'mps':\n        return torch.amp.GradScaler('mps')\n"
        "    return torch.amp.GradScaler('cuda')",
        "import torch\ndef f(x, amp):\n    with torch.autocast('cuda', enabled=amp and x.is_cuda):\n        return x",
        "import torch\nTORCH_2_4 = True\ndef f(d):\n"
        "    return torch.amp.GradScaler(d) if TORCH_2_4 else torch.cuda.amp.GradScaler()",
        "import torch\ndef f(d):\n    try:\n        return torch.amp.GradScaler(device=d)\n"
        "    except (AttributeError, TypeError):\n        return torch.cuda.amp.GradScaler()",
    ),
    hooks={"call": _call, "ifexp": _chosen, "assign": _assigned},
    fixable=True,
)
