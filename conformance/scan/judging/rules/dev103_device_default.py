"""DEV103: a device as the default of a parameter, an option, a field or a setting."""

from __future__ import annotations

import ast

from conformance.scan.findings import Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.mending import mend_device
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.judging.verdicts import Placement
from conformance.scan.knowing.alternatives import replaced_at_once
from conformance.scan.knowing.markers import refuses
from conformance.scan.knowing.scopes import FunctionNode
from conformance.scan.knowing.vocabulary import (
    ACCELERATORS,
    declared_backends,
    is_device_name,
)
from conformance.scan.reading.nodes import parts_of

#: Parameters that say how something is computed: the function looks at the device itself.
_KINDS = frozenset({"impl", "implementation", "kernel", "mode", "method", "engine", "backend"})
#: What reads all that a function was given.
_READ_ALL = ("locals", "vars", "save_hyperparameters", "currentframe")
_READS = frozenset({"get", "pop", "setdefault", "getenv", "getattr"})
_OPTIONS = frozenset(
    {"add_argument", "option", "Option", "argument", "Argument", "Field", "field", "ib", "attrib"}
)


def _device(context: Context, node: ast.expr | None) -> str | None:
    """Accelerator that every value of an expression names outright, None otherwise."""
    if node is None:
        return None
    leaves = context.leaves(node)
    for leaf in leaves:
        unguarded = leaf.facts.guard(leaf.device or "") is None
        if leaf.device in ACCELERATORS and unguarded and not leaf.chosen:
            return leaf.device
    for leaf in leaves:
        value = leaf.key and context.resolver.only_value(leaf.node, context.scope)
        if value:
            device = context.resolver.literal(value[0], value[1])
            if device in ACCELERATORS:
                return device
    return None


def _report(
    context: Context,
    node: ast.expr,
    device: str,
    where: str,
    severity: Severity | None = None,
) -> None:
    if context.guarded(device):
        return
    context.consumed.add(id(node))
    context.settled.update(id(part) for part in parts_of(node))
    message = f"device '{device}' is the default of {where}"
    context.report(RULE, node, message, severity=severity)


def _function(context: Context, node: FunctionNode) -> None:
    asking = node.name.startswith(("is_", "has_", "check_", "supports_", "_is_", "_check_"))
    arguments = node.args
    if asking or declared_backends(node.name) or _refuses_others(context, node):
        context.consumed.update(id(default) for default in arguments.defaults)
        context.consumed.update(id(default) for default in arguments.kw_defaults)
        return
    positional = [*arguments.posonlyargs, *arguments.args]
    offset = len(positional) - len(arguments.defaults)
    pairs: list[tuple[ast.arg, ast.expr | None]] = [
        *zip(positional[offset:], arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        if isinstance(default, ast.Call) and _name(default) in _OPTIONS:
            _option(context, default)
            continue
        device = _device(context, default)
        if device is not None and default is not None:
            if argument.arg in _KINDS or replaced_at_once(node.body, argument.arg):
                context.consumed.add(id(default))
                continue
            # Autocast of the wrong device warns and does nothing; it does not fail.
            milder = Severity.WARNING if "autocast" in node.name.lower() else None
            if _is_chosen_again(context, node, argument.arg):
                milder = Severity.WARNING
            if _is_unread(node, argument.arg):
                milder = Severity.NOTE
            _report(context, default, device, f"parameter `{argument.arg}`", milder)


def _is_chosen_again(context: Context, node: FunctionNode, name: str) -> bool:
    """Whether a function gives a parameter another value where there is no CUDA."""
    scope = context.resolver.scopes.of.get(id(node), context.scope)
    for statement in node.body:
        match statement:
            case ast.If(test=test, body=[ast.Assign(targets=[ast.Name(id=stored)])]) if (
                stored == name
            ):
                guard = context.conditions.of(test, scope)[1].guard("cuda")
                if guard is not None and guard.kind == "probe":
                    return True
    return False


def _is_unread(node: FunctionNode, name: str) -> bool:
    """Whether a function does something, and nothing with a parameter.

    One without a body says what others of its name are given, and what a decorator or a base
    class reads by itself is not seen.
    """
    if node.decorator_list or all(map(_is_silent, node.body)):
        return False
    parts = [part for statement in node.body for part in parts_of(statement)]
    said = {part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in parts}
    return said.isdisjoint({name, *_READ_ALL})


def _is_silent(statement: ast.stmt) -> bool:
    """Whether it is what stands in a body that is still to be written."""
    said = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return said or isinstance(statement, ast.Pass | ast.Raise)


def _refuses_others(context: Context, node: FunctionNode) -> bool:
    """Whether the function begins by refusing machines without CUDA: then its default fits."""
    scope = context.resolver.scopes.of.get(id(node), context.scope)
    for statement in node.body:
        side = 0 if isinstance(statement, ast.Assert) else 1
        if isinstance(statement, ast.Assert) or (
            isinstance(statement, ast.If) and refuses(statement.body)
        ):
            facts = context.conditions.of(statement.test, scope)[side]
            if facts.guard("cuda") is not None:
                return True
    return False


def _option(context: Context, node: ast.Call) -> None:
    name = _name(node)
    if name not in _OPTIONS:
        return
    for keyword in node.keywords:
        if keyword.arg in ("default", "default_value", "default_factory"):
            value = keyword.value.body if isinstance(keyword.value, ast.Lambda) else keyword.value
            device = _device(context, value)
            if device is not None:
                where = "a field" if "ield" in name or "ib" in name else "an option"
                _report(context, value, device, where)
    if node.args and name in ("Option", "Argument", "Field"):
        device = _device(context, node.args[0])
        if device is not None:
            _report(context, node.args[0], device, "a field" if name == "Field" else "an option")


def _name(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _call(context: Context, node: ast.Call) -> None:
    _option(context, node)
    name = _name(node)
    if _reads_setting(node, name):
        device = _device(context, node.args[1])
        if device is not None:
            _report(context, node.args[1], device, "a setting")
        return
    if name not in _READS or len(node.args) < (3 if name == "getattr" else 2):
        if name == "set_defaults":
            for keyword in node.keywords:
                device = _device(context, keyword.value)
                if device is not None and "device" in (keyword.arg or ""):
                    _report(context, keyword.value, device, "an option")
        return
    default = node.args[2 if name == "getattr" else 1]
    device = _device(context, default)
    if device is not None:
        where = "an environment variable" if "env" in ast.unparse(node.func) else "a setting"
        _report(context, default, device, where)


def _reads_setting(node: ast.Call, name: str) -> bool:
    """``get_conf("device", "cuda")``: a reader of the project's own, told a name and a default."""
    if not name.startswith(("get_", "read_", "load_")) or len(node.args) != 2:
        return False
    wanted = node.args[0]
    return (
        isinstance(wanted, ast.Constant)
        and isinstance(wanted.value, str)
        and is_device_name(wanted.value)
    )


def _class(context: Context, node: ast.ClassDef) -> None:
    """Fields of a class: dataclass, pydantic, or plain attributes with a device's name."""
    for statement in node.body:
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.AnnAssign) and value is not None:
            if isinstance(value, ast.Call):
                continue
            device = _device(context, value)
            if device is not None and isinstance(statement.target, ast.Name):
                if context.guarded(device):
                    continue
                _report(context, value, device, f"field `{statement.target.id}`")


def _placement(context: Context, placement: Placement) -> None:
    if placement.kind != "default":
        return
    context.report(
        RULE,
        placement.node,
        f"device '{placement.device}' stands in for a missing value in {placement.how}",
        severity=placement.severity,
        fix=mend_device(context, placement.node, placement.how, placement.scope),
        scope=placement.scope,
    )


RULE = Rule(
    code="DEV103",
    name="device-default",
    severity=Severity.ERROR,
    summary="a device is the default of a parameter, an option or a setting",
    why=(
        'A default of "cuda" fails for everyone who does not know that it must be overridden, '
        "which is everyone who follows the README on another machine."
    ),
    remedy=(
        'Default to None or "auto" and resolve it once, for example from '
        "`torch.accelerator.current_accelerator()`."
    ),
    invalid=(
        Bad("def load(path, device='cuda'):\n    return path", 1),
        Bad("def load(path, *, device: str = 'cuda:0'):\n    return path", 1),
        Bad("import torch\ndef load(path, device=torch.device('cuda')):\n    return path", 2),
        Bad("from dataclasses import dataclass\n@dataclass\nclass C:\n    device: str = 'cuda'", 4),
        Bad(
            "from dataclasses import dataclass, field\n@dataclass\nclass C:\n    device: str = field(default='cuda')",
            4,
        ),
        Bad(
            "from pydantic import BaseModel, Field\nclass C(BaseModel):\n    device: str = Field('cuda', description='x')",
            3,
        ),
        Bad(
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--device', default='cuda')",
            3,
        ),
        Bad(
            "import click\n@click.option('--device', default='cuda')\ndef main(device):\n    pass",
            2,
        ),
        Bad("import typer\ndef main(device: str = typer.Option('cuda')):\n    pass", 2),
        Bad("import os\nname = os.environ.get('DEVICE', 'cuda')", 2),
        Bad("import os\nname = os.getenv('DEVICE', 'cuda')", 2),
        Bad("def f(config):\n    return config.get('device', 'cuda')", 2),
        Bad("def f(x, device=None):\n    device = device or 'cuda'\n    return x.to(device)", 2),
        Bad(
            "def f(x, device=None):\n    if device is None:\n        device = 'cuda'\n    return x.to(device)",
            3,
        ),
        Bad(
            "from dataclasses import dataclass, field\n@dataclass\nclass C:\n"
            "    device: str = field(default_factory=lambda: 'cuda')",
            4,
        ),
        Bad("from app import get_conf\ndevice = get_conf('device', 'cuda')", 2),
        Bad("DEFAULT = 'cuda'\ndef f(x, device=DEFAULT):\n    return x", 2),
    ),
    valid=(
        "def f(x, impl='cuda'):\n    return fast(x) if impl == 'cuda' and x.is_cuda else slow(x)",
        "class Kernel:\n    def __init__(self, backend='cuda'):\n        self.backend = backend\n"
        "    def run(self, x):\n        return fast(x) if has_kernel and self.backend == 'cuda' else slow(x)",
        "def load(path, device='cuda'):\n    device = 'cpu'\n    return open_(path).to(device)",
        "def load(path, device=None):\n    return path",
        "def load(path, device='cpu'):\n    return path",
        "def load(path, device='auto'):\n    return path",
        "import os\nname = os.environ.get('DEVICE', 'auto')",
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--device', default='auto', help='cuda')",
        "def _load_cuda(path, device='cuda'):\n    return path",
        "def f(config):\n    return config.get('cuda')",
        "import torch\ndef measure(model, device='cuda'):\n    assert torch.cuda.is_available(), 'only on CUDA'\n"
        "    return model.to(device)",
        "import torch\ndef pack(x, device=None):\n    device = device or torch.device('cuda')\n"
        "    if device.type != 'cuda':\n        raise ValueError(device)\n    return x.to(device)",
    ),
    hooks={"function": _function, "call": _call, "class": _class, "placement": _placement},
    fixable=True,
)
