"""DEV109: random numbers seeded, drawn or saved for one backend only."""

from __future__ import annotations

import ast

from conformance.scan.findings import Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.mending import mend_device, rename_call
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.judging.rules.families import RANDOM, SEEDING, backend_of
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.vocabulary import ACCELERATORS


def _call(context: Context, node: ast.Call) -> None:
    dotted = context.dotted(node.func)
    if dotted is None or not dotted.startswith("torch."):
        return
    if dotted == "torch.Generator":
        _generator(context, node)
        return
    backend = backend_of(dotted)
    name = dotted.rpartition(".")[2]
    if backend is None or name not in RANDOM:
        return
    guard = context.facts.guard(backend)
    if guard is not None and guard.kind != "probe":
        return
    if name in SEEDING:
        if _seeds_all(context) or context.call_serves(node, SEEDING):
            return
        context.report(
            RULE,
            node,
            f"{dotted}() seeds {backend} only",
            severity=Severity.WARNING,
            fix=_seed_fix(context, node, name),
        )
    elif guard is None:
        quiet = name in ("get_rng_state_all", "set_rng_state_all", "set_rng_state")
        context.report(
            RULE,
            node,
            f"{dotted}() keeps the random state of {backend} only",
            severity=Severity.WARNING if quiet else Severity.ERROR,
        )
    elif not context.call_serves(node, RANDOM):
        context.report(
            RULE,
            node,
            f"{dotted}() keeps the random state of {backend} only",
            severity=Severity.WARNING,
        )


def _seeds_all(context: Context) -> bool:
    """Whether ``torch.manual_seed``, which seeds every device, is called in the same place."""
    return context.once(_is_seeding, (context.scope.enclosing("function") or context.scope).node)


def _is_seeding(point: Point, owner: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Call)
        and point.dotted(node.func) in ("torch.manual_seed", "torch.random.manual_seed")
        for node in point.parts_of(owner)
    )


def _seed_fix(context: Context, node: ast.Call, name: str) -> Fix | None:
    """Safe: ``torch.manual_seed`` seeds CUDA as well, and the CPU and MPS with it."""
    statement = isinstance(context.statement, ast.Expr) and context.statement.value is node
    if not statement or name not in ("manual_seed", "manual_seed_all"):
        return None
    return rename_call(context, node, "manual_seed", safe=True)


def _generator(context: Context, node: ast.Call) -> None:
    argument = node.args[0] if node.args else None
    for keyword in node.keywords:
        if keyword.arg == "device":
            argument = keyword.value
    if argument is None:
        return
    leaves = context.leaves(argument)
    devices = {leaf.device for leaf in leaves}
    for leaf in leaves:
        if leaf.device not in ACCELERATORS or leaf.device is None:
            continue
        if leaf.facts.guard(leaf.device) is None:
            context.report(
                RULE,
                leaf.node,
                f"the random generator is bound to {leaf.device}",
                fix=mend_device(context, leaf.node, "Generator()"),
            )
        elif (
            "cpu" in devices
            and leaf.device == "cuda"
            and not context.choice_serves(leaf.node, context.scope)
        ):
            context.report(
                RULE,
                leaf.node,
                "the random generator knows only cuda and cpu",
                severity=Severity.WARNING,
            )


RULE = Rule(
    code="DEV109",
    name="backend-random",
    severity=Severity.ERROR,
    summary="random numbers are seeded, drawn or saved for one backend only",
    why=(
        "A seed given to CUDA alone leaves other accelerators unseeded, so runs there cannot be "
        "repeated; a generator made for cuda raises elsewhere."
    ),
    remedy=(
        "`torch.manual_seed` seeds every device. Draw noise from a CPU generator and move it: the "
        "same seed then gives the same numbers everywhere."
    ),
    invalid=(
        Bad("import torch\ntorch.cuda.manual_seed_all(0)", 2, "import torch\ntorch.manual_seed(0)"),
        Bad(
            "import torch\ndef f(seed):\n    torch.cuda.manual_seed(seed)",
            3,
            "import torch\ndef f(seed):\n    torch.manual_seed(seed)",
        ),
        Bad("import torch\ng = torch.Generator(device='cuda')", 2),
        Bad("import torch\ng = torch.Generator('cuda').manual_seed(0)", 2),
        Bad("import torch\nstate = torch.cuda.get_rng_state()", 2),
        Bad(
            "import torch\ndef f():\n    if torch.cuda.is_available():\n        return torch.cuda.get_rng_state()",
            4,
        ),
        Bad("from torch.cuda import manual_seed_all\nmanual_seed_all(1)", 2),
    ),
    valid=(
        "import torch\ntorch.manual_seed(0)",
        "import torch\ndef f(seed):\n    torch.manual_seed(seed)\n    torch.cuda.manual_seed_all(seed)",
        "import torch\ng = torch.Generator(device='cpu')",
        "import torch\ndef f(device):\n    return torch.Generator(device=device)",
        "import torch\ndef f(x):\n    if x.is_cuda:\n        return torch.cuda.get_rng_state()",
        "import torch\ndef f():\n    if torch.cuda.is_available():\n        return torch.cuda.get_rng_state()\n"
        "    if torch.backends.mps.is_available():\n        return torch.mps.get_rng_state()",
    ),
    hooks={"call": _call},
    fixable=True,
)
