"""DEV102: a call into one backend's namespace that nothing guards."""

from __future__ import annotations

import ast
import re

from conformance.scan.findings import Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.mending import guard_statement, rename_call
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.judging.rules.families import (
    HARMLESS,
    HISTORY,
    MEMORY,
    PASSIVE,
    RANDOM,
    backend_of,
    is_amp,
    is_probe,
)
from conformance.scan.knowing.alternatives import calls
from conformance.scan.knowing.circumstances import is_left_by_one, is_of_process_group
from conformance.scan.knowing.shapes import is_for_collective
from conformance.scan.knowing.vocabulary import ACCELERATORS, asks_mac

#: Functions of ``torch.cuda`` and what ``torch.accelerator`` calls them.
_NEUTRAL = {
    "synchronize": "accelerator.synchronize",
    "set_device": "accelerator.set_device_index",
    "current_device": "accelerator.current_device_index",
    "current_stream": "accelerator.current_stream",
    "set_stream": "accelerator.set_stream",
    "Stream": "Stream",
    "Event": "Event",
}

#: CUDA's graphs: whoever records one means CUDA.
_GRAPHS = frozenset(
    {"CUDAGraph", "graph", "graph_pool_handle", "make_graphed_callables"}
    | {"is_current_stream_capturing"}
)
_STREAMS = frozenset({"current_stream", "set_stream", "Stream", "Event"})
_STREAMED = re.compile(
    r"cuda\.stream\(|cuda_stream|cuda_event|cuda\.(?:set|default)_stream|ExternalStream"
)


def _call(context: Context, node: ast.Call) -> None:
    dotted = context.dotted(node.func)
    if dotted is None or not dotted.startswith("torch."):
        return
    backend = backend_of(dotted)
    if backend is None or context.guarded(backend) or context.decorating:
        return
    name = dotted.rpartition(".")[2]
    if is_probe(dotted) or is_amp(dotted) or name in MEMORY or name in RANDOM:
        return
    if name.endswith(("Error", "Exception")) or name in PASSIVE or "jiterator" in dotted:
        return
    harmless = name in HARMLESS.get(backend, ())
    other = set(context.facts.known) & ACCELERATORS - {backend}
    if harmless and not other and set(context.facts.excluded) & ACCELERATORS - {backend}:
        return  # the last of a chain that serves the other accelerators
    if (
        harmless
        and not other
        and context.alternatives.beside(context.statement, calls(frozenset({name})), asks_mac)
    ):
        return  # the next statement does the same for another accelerator
    message = f"{dotted}() is called without knowing that {backend} is in use"
    if "cpu" in context.facts.excluded:
        message = f"{dotted}() is called for anything that is not the CPU"
    severity = Severity.WARNING if harmless or name in HISTORY else Severity.ERROR
    if backend == "mps" and "cuda" in context.facts.excluded:
        severity = Severity.NOTE  # what is left after CUDA was served: a Mac, or the CPU alone
    if backend == "cuda" and (
        name in _GRAPHS
        or is_of_process_group(context, node)
        or is_left_by_one(context)
        or is_for_collective(context, None, context.scope)
    ):
        severity = Severity.NOTE
    context.report(
        RULE,
        node,
        message,
        severity=severity,
        fix=_fix(context, node, name, backend),
    )


def _assign(context: Context, node: ast.Assign | ast.AnnAssign) -> None:
    """A function of CUDA's kept for later, in the very branch of another accelerator."""
    if not isinstance(node.value, ast.Attribute):
        return
    dotted = context.dotted(node.value) or ""
    others = set(context.facts.known) & ACCELERATORS - {"cuda"}
    if not others or backend_of(dotted) != "cuda" or context.guarded("cuda"):
        return
    if dotted.rpartition(".")[2] in _NEUTRAL:
        context.report(RULE, node.value, f"{dotted} is kept where {min(others)} is in use")


def _fix(context: Context, node: ast.Call, name: str, backend: str) -> Fix | None:
    if backend not in ("cuda", "mps", "xpu"):
        return None
    if name in ("empty_cache", "synchronize") and not node.args and not node.keywords:
        safe = guard_statement(context, node, name)
        if safe is not None:
            return safe
    if name in _STREAMS and _STREAMED.search(context.source.text):
        return None  # CUDA's own functions take CUDA's own streams
    if name in _NEUTRAL:
        return rename_call(context, node, _NEUTRAL[name])
    return None


RULE = Rule(
    code="DEV102",
    name="unguarded-backend-call",
    severity=Severity.ERROR,
    summary="a call into one backend's namespace is not guarded",
    why=(
        "Most of `torch.cuda` raises on a build or machine without CUDA, and `torch.mps` raises "
        "off the Mac just the same. The few calls that do nothing elsewhere (`empty_cache`) leave "
        "the other accelerators without what they were written for: those are warnings, and so are "
        "the allocator's own debugging tools, which nobody asks for off CUDA."
    ),
    remedy=(
        "Call `torch.accelerator` (behind `torch.accelerator.is_available()`), or reach the call "
        "only when the device's type says so."
    ),
    invalid=(
        Bad(
            "import torch\ntorch.cuda.synchronize()",
            2,
            "import torch\nif torch.accelerator.is_available():\n    torch.accelerator.synchronize()",
        ),
        Bad(
            "import torch\ndef f():\n    torch.cuda.empty_cache()  # give it back",
            3,
            "import torch\ndef f():\n    if torch.accelerator.is_available():\n"
            "        torch.accelerator.empty_cache()  # give it back",
        ),
        Bad(
            "import torch as t\nt.cuda.set_device(0)",
            2,
            "import torch as t\nt.accelerator.set_device_index(0)",
        ),
        Bad("from torch import cuda as c\nc.empty_cache()", 2),
        Bad("from torch.cuda import empty_cache\nempty_cache()", 2),
        Bad("import torch\ntorch.mps.empty_cache()", 2),
        Bad(
            "import torch\ndef f(device):\n    if device == 'mps':\n        torch.cuda.empty_cache()",
            4,
        ),
        Bad(
            "import torch\nif torch.cuda.is_available():\n    pass\nelse:\n    torch.cuda.synchronize()",
            5,
        ),
        Bad(
            "import torch\ndef f(device):\n    if device != 'cpu':\n        torch.cuda.synchronize()",
            4,
        ),
        Bad("import torch\ns = torch.cuda.Stream()", 2, "import torch\ns = torch.Stream()"),
        Bad("import torch\ntorch.cuda.nvtx.range_push('step')", 2),
        Bad(
            "import torch\nclass A:\n    def __init__(self):\n        if torch.backends.mps.is_available():\n"
            "            self.wait = torch.cuda.synchronize",
            5,
        ),
        Bad("import torch\nsync = torch.cuda.synchronize\nsync()", 3),
        Bad("import torch\ndef watch():\n    torch.cuda.memory._record_memory_history()", 3),
        Bad(
            "import torch\ndef f():\n    if not (torch.cuda.is_available() or torch.xpu.is_available()):\n"
            "        return\n    torch.cuda.synchronize()",
            5,
        ),
        Bad(
            "import torch\ndef f(flag, names):\n    wait = False\n    if flag:\n        wait = True\n"
            "    if wait:\n        torch.cuda.synchronize()",
            7,
        ),
        Bad("import torch\ngetattr(torch, 'cuda').synchronize()", 2),
        Bad(
            "import torch\ndef f(gpu):\n    if gpu is not None:\n        torch.cuda.set_device(gpu)",
            4,
        ),
        Bad(
            "import torch\ntry:\n    torch.cuda.synchronize()\nexcept RuntimeError as error:\n    print(error)\n    raise",
            3,
        ),
        Bad(
            "import sys, torch\ntry:\n    torch.cuda.synchronize()\nexcept Exception as error:\n    print(error)\n    sys.exit(1)",
            3,
        ),
        Bad(
            "import torch, traceback\ntry:\n    torch.cuda.synchronize()\nexcept Exception:\n    traceback.print_exc()",
            3,
        ),
        Bad(
            "import logging, torch\ntry:\n    torch.cuda.synchronize()\nexcept Exception:\n    logging.exception('no')",
            3,
        ),
        Bad(
            "import logging, torch, traceback\ntry:\n    torch.cuda.synchronize()\nexcept Exception as e:\n"
            "    logging.info('stopped: %s', e)\n    traceback.print_exc()",
            3,
        ),
        Bad(
            "import torch\ntry:\n    while True:\n"
            + "        print('a step')\n" * 12
            + "        torch.cuda.synchronize()\n"
            "except Exception as e:\n    print(e)",
            16,
        ),
        Bad(
            "import torch\ndef f(device, state):\n    if device.type == 'cuda':\n        torch.cuda.set_stream(state)\n"
            "    elif device.type == 'mps':\n        torch.cuda.current_stream()",
            6,
        ),
    ),
    valid=(
        "import torch\nif torch.cuda.is_available():\n    torch.cuda.synchronize()",
        "import torch\ndef f():\n    if not torch.cuda.is_available():\n        return\n    torch.cuda.synchronize()",
        "import torch\nok = torch.cuda.is_available() and torch.cuda.current_stream()",
        "import torch\nx = torch.cuda.current_device() if torch.cuda.is_available() else None",
        "import torch\ndef has_cuda():\n    return torch.cuda.is_available()\nif has_cuda():\n    torch.cuda.synchronize()",
        "import torch\ndef ready():\n    return torch.cuda.is_available()\nif ready():\n    torch.cuda.synchronize()",
        "import torch\ntry:\n    torch.cuda.synchronize()\nexcept RuntimeError:\n    print('no')",
        "import torch\ndef f(device):\n    match device.type:\n        case 'cuda':\n            torch.cuda.synchronize()\n"
        "        case 'mps':\n            torch.mps.synchronize()",
        "import torch\nassert torch.cuda.is_available()\ntorch.cuda.synchronize()",
        "import torch\ndef f(device):\n    if device.type == 'mps':\n        torch.mps.synchronize()\n"
        "    elif device.type == 'cuda':\n        torch.cuda.synchronize()",
        "import torch\nuse = torch.cuda.is_available()\nif use:\n    torch.cuda.synchronize()",
        "import torch\nif torch.cuda.device_count() > 0:\n    torch.cuda.synchronize()",
        "import contextlib, torch\nwith contextlib.suppress(RuntimeError):\n    torch.cuda.synchronize()",
        "import torch\nclass A:\n    def __init__(self):\n        self.fast = torch.cuda.is_available()\n"
        "    def f(self):\n        if self.fast:\n            torch.cuda.synchronize()",
        "import torch\ntorch.accelerator.synchronize()",
        "import torch\ndef f():\n    if not (torch.cuda.is_available() or torch.xpu.is_available()):\n"
        "        return\n    if torch.xpu.is_available():\n        torch.xpu.synchronize()\n"
        "    else:\n        torch.cuda.synchronize()",
        "import torch\ndef f(inputs):\n    wait = False\n    for x in inputs:\n        if x.is_cuda:\n"
        "            wait = True\n    if wait:\n        torch.cuda.synchronize()",
        "import torch\nclass A:\n    def __init__(self):\n        assert torch.cuda.is_available()\n"
        "    def run(self):\n        torch.cuda.synchronize()",
        "import torch\ncount = torch.cuda.device_count()\nfor i in range(count):\n    torch.cuda.synchronize(i)",
        "import torch\ndef f(rank):\n    assert torch.cuda.device_count() > rank, 'too few devices'\n    torch.cuda.set_device(rank)",
        "import torch\nclass A:\n    def run(self):\n        if self.cuda_graphs_mode is Mode.FULL:\n            torch.cuda.synchronize()",
        "import torch\ndef f(x):\n    stream = torch.cuda.current_stream() if x.is_cuda else None\n"
        "    if stream is not None:\n        torch.cuda.synchronize()",
        "import torch\nclass A:\n    def __init__(self, x):\n        self.stream = None\n        if x.is_cuda:\n"
        "            self.stream = torch.cuda.Stream()\n    def run(self):\n        if self.stream is not None:\n"
        "            torch.cuda.synchronize()",
        "import torch\ndef f(wait):\n    fast = False\n    if wait:\n        fast = torch.cuda.is_available()\n"
        "    if fast:\n        torch.cuda.synchronize()",
        "import torch\nif torch.backends.mps.is_available():\n    torch.mps.empty_cache()\nelse:\n    torch.cuda.empty_cache()",
        "import torch\ndef f():\n    import flash_attn\n    torch.cuda.synchronize()",
        "import torch\ndef f():\n    torch.cuda.empty_cache()\n    if torch.backends.mps.is_available():\n        torch.mps.empty_cache()",
    ),
    hooks={"call": _call, "assign": _assign},
    fixable=True,
)
