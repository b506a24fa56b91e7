"""DEV110: memory, properties or number of devices read from one backend only."""

from __future__ import annotations

import ast

from conformance.scan.findings import Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.mending import answer_without, guard_statement, rename_call
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.judging.rules.families import MEMORY, QUIET_MEMORY, backend_of
from conformance.scan.reading.nodes import parts_of

#: What CUDA answers where it is not there.
_NOTHING = {
    "memory_allocated": "0",
    "max_memory_allocated": "0",
    "memory_reserved": "0",
    "max_memory_reserved": "0",
    "memory_stats": "{}",
}
_NEUTRAL = {
    "mem_get_info": "accelerator.get_memory_info",
    "device_count": "accelerator.device_count",
}

#: What may tell as much of another accelerator.
_INFORMING = MEMORY | {"get_memory_info", "get_memory_stats", "virtual_memory"}


def _call(context: Context, node: ast.Call) -> None:
    dotted = context.dotted(node.func)
    if dotted is None or not dotted.startswith("torch."):
        return
    backend = backend_of(dotted)
    name = dotted.rpartition(".")[2]
    if backend is None or name not in MEMORY:
        return
    guard = context.facts.guard(backend)
    if guard is not None and guard.kind != "probe":
        return
    if name == "device_count":
        if (
            not _is_tested(context, node)
            and guard is None
            and not context.call_serves(node, _INFORMING)
        ):
            context.report(
                RULE,
                node,
                f"{dotted}() counts {backend} devices only",
                severity=Severity.NOTE,
                fix=_fix(context, node, name),
            )
    elif guard is None:
        quiet = backend != "mps" and name in QUIET_MEMORY
        context.report(
            RULE,
            node,
            f"{dotted}() is asked without knowing that {backend} is in use",
            severity=Severity.WARNING if quiet else Severity.ERROR,
            fix=_fix(context, node, name),
        )
    elif (
        backend == "cuda"
        and _is_memory(context, name)
        and not context.call_serves(node, _INFORMING)
    ):
        context.report(
            RULE,
            node,
            f"{dotted}() is read where CUDA is found; other accelerators count as none",
            severity=Severity.WARNING,
        )


def _is_memory(context: Context, name: str) -> bool:
    """Whether memory is asked for; an architecture or a name concerns CUDA's cards alone."""
    if name in ("get_device_capability", "get_device_name", "set_per_process_memory_fraction"):
        return False
    if name != "get_device_properties":
        return True
    owner = context.scope.enclosing("function") or context.scope
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("total_memory", "total_mem")
        for node in context.parts_of(owner.node)
    )


def _is_tested(context: Context, node: ast.Call) -> bool:
    """Whether the count is only compared or tested (a second card, or any at all), or bounds a
    loop, which then has nothing to do."""
    if context.bounds_a_loop(node):
        return True
    return id(node) in context.consumed or any(
        isinstance(parent, ast.Compare) and node in (parent.left, *parent.comparators)
        for parent in parts_of(context.statement)
    )


def _fix(context: Context, node: ast.Call, name: str) -> Fix | None:
    if not (context.dotted(node.func) or "").startswith("torch.cuda."):
        return None
    if name in _NOTHING:
        return answer_without(context, node, name, _NOTHING[name])
    if name == "reset_peak_memory_stats":
        return guard_statement(context, node, name)
    return rename_call(context, node, _NEUTRAL[name]) if name in _NEUTRAL else None


RULE = Rule(
    code="DEV110",
    name="backend-memory",
    severity=Severity.ERROR,
    summary="memory, properties or number of devices are read from one backend only",
    why=(
        "Limits derived from CUDA's memory alone take a Mac with 64 GB of unified memory for a "
        "machine without a GPU; asked without a guard, most of these functions raise."
    ),
    remedy=(
        "Ask `torch.accelerator` (`memory_allocated`, `get_memory_info`, `device_count`), and for "
        "MPS `torch.mps.recommended_max_memory()`."
    ),
    invalid=(
        Bad("import torch\ntotal = torch.cuda.get_device_properties(0).total_memory", 2),
        Bad(
            "import torch\ndef get_gpu_memory_gb():\n    if torch.cuda.is_available():\n"
            "        return torch.cuda.get_device_properties(0).total_memory / 1024**3\n    return 0",
            4,
        ),
        Bad(
            "import torch\ndef f():\n    if not torch.cuda.is_available():\n        return 0\n"
            "    return torch.cuda.mem_get_info()[1]",
            5,
        ),
        Bad(
            "import torch\nused = torch.cuda.memory_allocated()",
            2,
            "import torch\nused = (torch.accelerator.memory_allocated()"
            " if torch.accelerator.is_available() else 0)",
        ),
        Bad("from torch.cuda import get_device_properties as props\nn = props(0)", 2),
        Bad("import torch\nname = torch.cuda.get_device_name(0)", 2),
    ),
    valid=(
        "import torch\ndef f():\n    if torch.cuda.is_available():\n        return torch.cuda.mem_get_info()[1]\n"
        "    if torch.backends.mps.is_available():\n        return torch.mps.recommended_max_memory()\n    return 0",
        "import torch\nused = torch.accelerator.memory_allocated()",
        "import torch\ndef f(device):\n    if device.type == 'cuda':\n        return torch.cuda.mem_get_info(device)",
        "import torch\nif torch.cuda.device_count() > 1:\n    print('several')",
        "import torch\nfor i in range(torch.cuda.device_count()):\n    print(torch.cuda.get_device_name(i))",
        "import torch\ndef f():\n    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8:\n        return 1",
    ),
    hooks={"call": _call},
    fixable=True,
)
