"""DEV104: automatic selection that knows only CUDA and the CPU."""

from __future__ import annotations

import ast
import re
from itertools import pairwise

from conformance.scan.findings import Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.mending import mend_choice
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.judging.verdicts import Placement
from conformance.scan.knowing.alternatives import mentions
from conformance.scan.knowing.markers import leaves_without
from conformance.scan.knowing.vocabulary import asks_mac, is_negated, named_backends
from conformance.scan.reading.nodes import parts_of
from conformance.scan.reading.source import without_texts

#: Flags of an object that something hangs on that is moved.
_MOVING = re.compile(r"\bif (?:\w+\.)+(\w+):\s+[^\n]*\.(?:cuda|to)\(")
_SPELLED = re.compile(r"\b(?=(\w+\.\w+)\b)")


def _placement(context: Context, placement: Placement) -> None:
    if placement.kind != "selection" or _is_refused_at_once(context, placement):
        return
    node = placement.probe if placement.probe is not None else placement.node
    if not hasattr(node, "lineno"):
        node = placement.node
    choice = "between CUDA and the CPU only"
    if placement.known:
        choice = f"among CUDA, {', '.join(placement.known)} and the CPU, without mps"
    context.report(
        RULE,
        node,
        f"{placement.how} is chosen {choice}",
        severity=placement.severity,
        fix=_fix(context, placement),
        scope=placement.scope,
    )


def _is_refused_at_once(context: Context, placement: Placement) -> bool:
    """Whether the statement behind the choice does not go on without CUDA: the CPU is not taken."""
    body = getattr(placement.scope.node, "body", None)
    for choice, following in pairwise(body if isinstance(body, list) else ()):
        if choice.lineno <= placement.node.lineno <= (choice.end_lineno or choice.lineno):
            return leaves_without(context, following, telling=True)
    return False


def _types(context: Context, node: ast.IfExp) -> None:
    """``torch.cuda.FloatTensor if cuda else torch.FloatTensor``: a choice of types of tensors."""
    sides = [context.dotted(side) or "" for side in (node.body, node.orelse)]
    if not all(side.startswith("torch.") and side.endswith("Tensor") for side in sides):
        return
    if sum(side.startswith("torch.cuda.") for side in sides) != 1 or context.choice_serves(
        node, context.scope
    ):
        return
    true, false = context.conditions.of(node.test, context.scope)
    facts = true if sides[0].startswith("torch.cuda.") else false
    guard = facts.guard("cuda")
    if guard is not None and guard.kind != "test":
        message = "the type of tensors is chosen between CUDA's and the CPU's only"
        context.report(RULE, node, message, severity=Severity.WARNING)


def _flag(context: Context, tree: ast.Module) -> None:
    """``args.cuda = not args.no_cuda and torch.cuda.is_available()``, where all that follows is
    moved by ``if args.cuda: x = x.cuda()``: told where it is decided, unless it is told below."""
    if context.in_tests:
        return
    # Read off the text: what is mended already need not have been parsed.
    text = context.source.text
    if "cuda =" not in text and "gpu =" not in text:  # sooner looked for than what follows
        return
    moving = set(_MOVING.findall(without_texts(text))) - _served(tree)
    lines = [context.source.lines[f.line - 1] for f in context.findings if f.code == "DEV104"]
    told = {word for line in lines for word in _SPELLED.findall(line)}
    for node in context.parts_saying(tree, "is_available"):
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=held), attr=name)]):
                pass
            case _:
                continue
        if held in ("self", "cls") or "cuda" not in named_backends(name) or is_negated(name):
            continue
        guard = context.conditions.of(node.value, context.scope)[0].guard("cuda")
        if guard is None or guard.kind != "probe" or name not in moving:
            continue
        if f"{held}.{name}" not in told:
            message = f"`{held}.{name}` moves things to CUDA, and nothing to another device"
            context.report(RULE, node, message)


def _served(tree: ast.Module) -> set[str]:
    """Flags of an object where something is moved to a Mac's GPU if they are not set."""
    return {
        node.test.attr
        for node in parts_of(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Attribute)
        and any(mentions(statement, asks_mac) for statement in node.orelse)
    }


def _fix(context: Context, placement: Placement) -> Fix | None:
    """Unsafe: one conditional expression chooses among what is there."""
    for node in parts_of(context.statement):
        if isinstance(node, ast.IfExp) and placement.node in (node.body, node.orelse):
            other = node.orelse if placement.node is node.body else node.body
            if context.resolver.literal(other, placement.scope) != "cpu":
                return None
            return mend_choice(context, node, placement.node, placement.how)
    return None


RULE = Rule(
    code="DEV104",
    name="cuda-or-cpu",
    severity=Severity.WARNING,
    summary="automatic selection knows only CUDA and the CPU",
    why=(
        "On a Mac, or on any accelerator but CUDA, the choice falls to the CPU: everything works "
        "and is many times slower than it has to be, which nobody reports as a bug."
    ),
    remedy=(
        "Ask `torch.accelerator.current_accelerator(check_available=True)`, or add an "
        "`elif torch.backends.mps.is_available()` branch."
    ),
    invalid=(
        Bad(
            "import torch\nif torch.cuda.is_available() and not args.no_cuda:\n    args.device = torch.device('cuda')\n"
            "else:\n    args.device = torch.device('cpu')",
            2,
        ),
        Bad(
            "import torch\ndef choose():\n    d = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
            "    return d, torch.float16",
            3,
        ),
        Bad(
            "import torch\ndevice = 'cuda' if torch.cuda.is_available() else 'cpu'",
            2,
            "import torch\ndevice = (torch.accelerator.current_accelerator(check_available=True)"
            ' or torch.device("cpu")).type',
        ),
        Bad(
            "import torch\nif torch.cuda.is_available():\n    device = 'cuda'\nelse:\n    device = 'cpu'",
            2,
        ),
        Bad(
            "import torch\ndef f(model):\n    device = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
            "    if not torch.cuda.is_available():\n        print('This is slow without CUDA.')\n    return model.to(device)",
            3,
        ),
        Bad(
            "import torch\ndevice = torch.device('cpu' if not torch.cuda.is_available() else 'cuda:0')",
            2,
        ),
        Bad(
            "import torch\ndef get_device():\n    if torch.cuda.is_available():\n        return 'cuda'\n    return 'cpu'",
            3,
        ),
        Bad("import torch\ndevice = ('cpu', 'cuda')[torch.cuda.is_available()]", 2),
        Bad(
            "import torch\ndef run(output_dir):\n    device = 'cuda' if torch.cuda.is_available() else 'cpu'\n    return device",
            3,
        ),
        Bad(
            "def f(x, use_gpu):\n    if use_gpu:\n        device = 'cuda'\n    else:\n        device = 'cpu'\n    return x.to(device)",
            2,
        ),
        Bad(
            "import torch\nclass A:\n    def __init__(self, device='cuda' if torch.cuda.is_available() else 'cpu'):\n"
            "        self.model = torch.ones(1).to(device)",
            3,
        ),
        Bad("import torch\ndevice = torch.cuda.is_available() and 'cuda' or 'cpu'", 2),
        Bad(
            "import torch\ndef f(model):\n    if torch.cuda.is_available():\n        model = model.cuda()\n    return model",
            3,
        ),
        Bad(
            "import torch\ndef f(x, use_cuda=torch.cuda.is_available()):\n    return x.to('cuda' if use_cuda else 'cpu')",
            3,
        ),
        Bad(
            "import torch\ndevice = 'cuda'\nif not torch.cuda.is_available():\n    device = 'cpu'",
            2,
        ),
        Bad(
            "import torch\nclass H:\n    def initialize(self, device='auto'):\n        if device == 'auto':\n"
            "            device = 'cuda' if torch.cuda.is_available() else 'cpu'\n        self.device = device",
            5,
        ),
        Bad(
            "import torch\nclass H:\n    def initialize(self, device='auto'):\n        if device == 'auto':\n"
            "            device = 'cuda' if torch.cuda.is_available() else 'cpu'\n        self.device = device\n"
            "        self.dtype = torch.bfloat16 if device in ['cuda', 'xpu'] else torch.float32",
            5,
        ),
        Bad(
            "import argparse, torch\np = argparse.ArgumentParser()\n"
            "p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')",
            3,
        ),
        Bad(
            "import click, torch\n@click.option('--device', default='cuda' if torch.cuda.is_available() else 'cpu')\n"
            "def main(device):\n    pass",
            2,
        ),
        Bad(
            "import torch\nfrom dataclasses import dataclass, field\n@dataclass\nclass C:\n"
            "    device: str = field(default='cuda' if torch.cuda.is_available() else 'cpu')",
            5,
        ),
        Bad(
            "import torch\nfrom dataclasses import dataclass, field\n@dataclass\nclass C:\n"
            "    device: str = field(default_factory=lambda: 'cuda' if torch.cuda.is_available() else 'cpu')",
            5,
        ),
        Bad(
            "import os, torch\nname = os.environ.get('DEVICE', 'cuda' if torch.cuda.is_available() else 'cpu')",
            2,
        ),
        Bad(
            "import torch\ndef pick(args):\n    return getattr(args, 'device', 'cuda' if torch.cuda.is_available() else 'cpu')",
            3,
        ),
        Bad(
            "import torch\nimport torch.distributed as dist\ndef f(n, model):\n    device = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
            "    model = model.to(device)\n    t = torch.tensor(n, device=device)\n    dist.all_reduce(t)\n    return t",
            4,
        ),
        Bad(
            "import torch\ndef pick():\n    return ('cuda' if torch.cuda.is_available() else 'cpu'), 1",
            3,
        ),
        Bad(
            "import torch\nif torch.cuda.is_available():\n    device = 'cuda'\nelif torch.xpu.is_available():\n"
            "    device = 'xpu'\nelse:\n    device = 'cpu'",
            2,
        ),
        Bad(
            "import torch\ndef f(model):\n    if torch.cuda.is_available():\n        model = model.cuda()\n"
            "    if torch.backends.mps.is_available():\n        print('slow')\n    return model",
            3,
        ),
        Bad(
            "import torch\ndef main(args, model):\n    args.cuda = not args.no_cuda and torch.cuda.is_available()\n"
            "    if args.cuda:\n        model.cuda()\n    return model",
            3,
        ),
        Bad(
            "import torch\nclass Run:\n    def __init__(self, opt, model):\n        if opt.use_gpu:\n            self.model = model.cuda()\n"
            "def main(opt):\n    opt.use_gpu = torch.cuda.is_available()\n    Run(opt, Net())",
            7,
        ),
        Bad(
            "import torch\ncuda = torch.cuda.is_available()\n"
            "Tensor = torch.cuda.FloatTensor if cuda else torch.FloatTensor",
            3,
        ),
    ),
    valid=(
        "import torch\ndef f(x):\n    return torch.cuda.FloatTensor if x.is_cuda else torch.FloatTensor",
        "import torch\ndevice = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'",
        "import torch\ndef pick():\n    if torch.cuda.is_available():\n        return 'cuda'\n"
        "    if torch.backends.mps.is_available():\n        return 'mps'\n    return 'cpu'",
        "import torch\ndevice = torch.accelerator.current_accelerator() or torch.device('cpu')",
        "import torch\ndef f(model):\n    if torch.cuda.is_available():\n        model = model.cuda()\n"
        "    if torch.backends.mps.is_available():\n        model = model.to('mps')\n    return model",
        "import torch\ndevice = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
        "if torch.backends.mps.is_available():\n    device = pick()",
        "import torch\ndef f(x):\n    if torch.cuda.is_available():\n        x = x.cuda()\n"
        "    elif torch.backends.mps.is_available():\n        x = x.to('mps')\n    return x",
        "import torch\nfrom faster_whisper import WhisperModel\ndef load():\n"
        "    device = 'cuda' if torch.cuda.is_available() else 'cpu'\n    return WhisperModel('x', device=device)",
        "def f(backend, x):\n    device = 'cuda' if backend == 'nccl' else 'cpu'\n    return x.to(device)",
        "import torch\ndef _has_mps():\n    return look_up('mps')()\ndef pick_device():\n"
        "    if torch.cuda.is_available():\n        return torch.device('cuda')\n    if _has_mps():\n"
        "        return torch.device('mps')\n    return torch.device('cpu')",
        "import torch\ndef cases(add):\n    add(device='cpu')\n    if torch.cuda.is_available():\n        add(device='cuda')",
        "import torch\nimport torch.distributed as dist\ndef f(n):\n    device = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
        "    t = torch.tensor(n, device=device)\n    dist.all_reduce(t)\n    return t",
        "import torch\nimport torch.distributed as dist\ndef f(n):\n"
        "    t = torch.tensor(n).to('cuda' if torch.cuda.is_available() else 'cpu')\n    dist.all_reduce(t)\n    return t",
        "import torch\ndef main(args, model):\n    args.cuda = torch.cuda.is_available()\n    if args.cuda:\n"
        "        model.cuda()\n    elif torch.backends.mps.is_available():\n        model.to('mps')",
        "import torch\ndef main(args, model):\n    args.cuda = torch.cuda.is_available()\n    print(args.cuda)\n    return model.cuda()",
        "import torch\nprint('cuda' if torch.cuda.is_available() else 'cpu')",
        "import torch\ndef measure(model):\n    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n"
        "    if not torch.cuda.is_available():\n        print('This needs a CUDA-enabled GPU.')\n        return\n"
        "    model.to(device)",
        "import torch\ndevice = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
        "if not torch.cuda.is_available():\n    raise RuntimeError('no CUDA')\nx = torch.ones(1).to(device)",
        "import torch\ndef major():\n    if not torch.cuda.is_available():\n        return 0\n"
        "    return torch.cuda.get_device_properties(torch.device('cuda')).major",
    ),
    hooks={"placement": _placement, "ifexp": _types, "finish": _flag},
    fixable=True,
)
