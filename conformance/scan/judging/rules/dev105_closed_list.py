"""DEV105: a closed list of devices that lacks MPS."""

from __future__ import annotations

import ast

from conformance.scan.findings import Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.mending import insert_after
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.knowing.markers import refuses
from conformance.scan.knowing.vocabulary import ACCELERATORS, DEVICE_WORDS
from conformance.scan.reading.nodes import parts_of

_Listed = list[tuple[ast.expr, str]]


def _words(nodes: list[ast.expr]) -> _Listed | None:
    """Elements with their words when every one is a device's word, None otherwise."""
    found: _Listed = []
    for node in nodes:
        if isinstance(node, ast.Tuple | ast.List) and node.elts:
            node = node.elts[0]  # a dropdown's (label, value)
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            return None
        word = node.value.lower().partition(":")[0]
        if word not in DEVICE_WORDS:
            return None
        found.append((node, word))
    return found


def _lacks_mps(listed: _Listed | None) -> bool:
    if listed is None:
        return False
    words = {word for _, word in listed}
    return bool({"cuda", "gpu"} & words) and "cpu" in words and "mps" not in words


def _fix(context: Context, listed: _Listed) -> Fix | None:
    """Safe: ``"mps"`` behind the CUDA entry, in the same quotes."""
    for node, word in listed:
        if word == "cuda" and isinstance(node, ast.Constant) and node.value == "cuda":
            segment = context.segment(node)
            if segment in ("'cuda'", '"cuda"'):
                return Fix((insert_after(context, node, f", {segment[0]}mps{segment[0]}"),), True)
    return None


def _profiles(context: Context) -> bool:
    """Whether the list is of what the profiler knows: it has no activity for MPS."""
    for target in getattr(
        context.statement, "targets", [getattr(context.statement, "target", None)]
    ):
        if "profil" in getattr(target, "id", getattr(target, "attr", "")).lower():
            return True
    return False


def _is_continued(context: Context, node: ast.expr) -> bool:
    """``["cuda", "cpu"] + [...] + ["mps"]``: what is missing is added in the same expression."""
    waiting: list[ast.AST] = [context.statement]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, ast.BinOp):
            waiting.extend(ast.iter_child_nodes(part))
            continue
        # The outermost sum holds all that its parts hold, so each node is looked at once.
        parts = list(parts_of(part))
        if any(inner is node for inner in parts):
            return any(
                isinstance(inner, ast.Constant) and str(inner.value).startswith("mps")
                for inner in parts
            )
    return False


def _providers(context: Context, node: ast.List | ast.Tuple | ast.Set) -> bool:
    """ONNX Runtime's providers: CUDA and the CPU, without the Mac's."""
    names = []
    for part in node.elts:
        if isinstance(part, ast.Tuple) and part.elts:
            part = part.elts[0]  # a provider with its options
        text = part.value if isinstance(part, ast.Constant) else None
        if not isinstance(text, str) or not text.endswith("ExecutionProvider"):
            return False
        names.append(text)
    lacking = "CUDAExecutionProvider" in names and "CoreMLExecutionProvider" not in names
    if lacking and (not context.guarded("cuda") or _is_chosen(context, node)):
        context.report(RULE, node, "a list of providers leaves out CoreMLExecutionProvider")
    return bool(names)


def _is_chosen(context: Context, node: ast.expr) -> bool:
    """``[CUDA, CPU] if cuda else [CPU]``: all that is not CUDA is left to the CPU."""
    return any(
        isinstance(part, ast.IfExp) and node in (part.body, part.orelse)
        for part in parts_of(context.statement)
    )


def _collection(context: Context, node: ast.List | ast.Tuple | ast.Set) -> None:
    if id(node) in context.settled:
        return
    if id(node) not in context.positive and _providers(context, node):
        return
    listed = _words(node.elts)
    if listed is None or not _lacks_mps(listed) or context.guarded("cuda"):
        return
    if _profiles(context) or _is_continued(context, node):
        return
    value = getattr(context.statement, "value", None)
    table = isinstance(value, ast.Dict) and node in value.values
    entry = isinstance(context.statement, ast.Assign) and any(
        isinstance(target, ast.Subscript) for target in context.statement.targets
    )
    plain = all(isinstance(part, ast.Constant) for part in node.elts)
    loop = isinstance(context.statement, ast.For) and context.statement.iter is node
    test = id(node) in context.positive
    # A list that names a third accelerator leaves mps out knowingly.
    knows = any(word in ACCELERATORS and word != "cuda" for _, word in listed)
    note = knows or context.in_tests or context.decorating or loop or table or entry or test
    shown = ", ".join(word for _, word in listed)
    context.report(
        RULE,
        node,
        f"a list of devices ({shown}) leaves out mps",
        severity=Severity.NOTE if note else RULE.severity,
        # Which way mps takes at a test that only opens a branch is not for a fix to say.
        fix=_fix(context, listed) if plain and not note else None,
    )


def _refused(context: Context, node: ast.If) -> None:
    """``if "cpu" not in device and "cuda" not in device: raise``: a list in two tests."""
    test = node.test
    if (
        not refuses(node.body)
        or not isinstance(test, ast.BoolOp)
        or not isinstance(test.op, ast.And)
    ):
        return
    words = [
        (part.left, str(part.left.value))
        for part in test.values
        if isinstance(part, ast.Compare)
        and isinstance(part.ops[0], ast.NotIn)
        and isinstance(part.left, ast.Constant)
    ]
    if len(words) == len(test.values) and _lacks_mps(words):  # type: ignore[arg-type]
        shown = ", ".join(word for _, word in words)
        context.report(RULE, test, f"a list of devices ({shown}) leaves out mps")


def _subscript(context: Context, node: ast.Subscript) -> None:
    if isinstance(node.value, ast.Tuple | ast.List):
        context.settled.add(id(node.value))  # ("cpu", "cuda")[flag] chooses, it does not list
        return
    name = context.dotted(node.value)
    if name is None or name.rpartition(".")[2] != "Literal":
        return
    context.settled.add(id(node.slice))
    annotation = getattr(context.statement, "annotation", None)
    if annotation is not None and any(
        isinstance(part, ast.Name) and part.id == "str" for part in parts_of(annotation)
    ):
        return  # `Literal[...] | str` closes nothing
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    listed = _words(parts)
    if listed is not None and _lacks_mps(listed) and not _profiles(context):
        context.report(RULE, node, "a Literal of devices leaves out mps", fix=_fix(context, listed))


def _class(context: Context, node: ast.ClassDef) -> None:
    if not any((context.dotted(base) or "").endswith("Enum") for base in node.bases):
        return
    values = [statement.value for statement in node.body if isinstance(statement, ast.Assign)]
    listed = _words(values)
    if listed is not None and _lacks_mps(listed):
        context.report(RULE, node, f"enumeration {node.name} of devices leaves out mps")


RULE = Rule(
    code="DEV105",
    name="closed-device-list",
    severity=Severity.WARNING,
    summary="a closed list of devices leaves out mps",
    why=(
        "Choices of an option, entries of a dropdown and validation lists refuse what they do not "
        "name: with only cuda and cpu to pick, a Mac's user cannot ask for the GPU at all."
    ),
    remedy='Add "mps", or accept whatever `torch.device()` accepts.',
    invalid=(
        Bad(
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--device', choices=['auto', 'cuda', 'cpu'])",
            3,
            "import argparse\np = argparse.ArgumentParser()\n"
            "p.add_argument('--device', choices=['auto', 'cuda', 'mps', 'cpu'])",
        ),
        Bad(
            "import gradio as gr\ngr.Dropdown(choices=['auto', 'cuda', 'cpu'], value='auto')",
            2,
            "import gradio as gr\ngr.Dropdown(choices=['auto', 'cuda', 'mps', 'cpu'], value='auto')",
        ),
        Bad("import gradio as gr\ngr.Dropdown([('CUDA', 'cuda'), ('CPU', 'cpu')])", 2),
        Bad(
            "from typing import Literal\nDevice = Literal['cuda', 'cpu']",
            2,
            "from typing import Literal\nDevice = Literal['cuda', 'mps', 'cpu']",
        ),
        Bad("import enum\nclass Device(enum.Enum):\n    CUDA = 'cuda'\n    CPU = 'cpu'", 2),
        Bad(
            "def check(device):\n    if device not in ('cuda', 'cpu'):\n        raise ValueError(device)",
            2,
            "def check(device):\n    if device not in ('cuda', 'mps', 'cpu'):\n        raise ValueError(device)",
        ),
        Bad(
            "import onnxruntime as ort\ns = ort.InferenceSession('x', providers=['CUDAExecutionProvider', 'CPUExecutionProvider'])",
            2,
        ),
        Bad("providers = [('CUDAExecutionProvider', {'device_id': 0}), 'CPUExecutionProvider']", 1),
        Bad(
            "import torch\ncuda = torch.cuda.is_available()\n"
            "providers = ['CUDAExecutionProvider', 'CPUExecutionProvider'] if cuda else ['CPUExecutionProvider']",
            3,
        ),
        Bad('VALID = {"cpu", "cuda"}', 1, 'VALID = {"cpu", "cuda", "mps"}'),
        Bad(
            "def f(device):\n    if 'cpu' not in device and 'cuda' not in device:\n        raise ValueError(device)",
            2,
        ),
    ),
    valid=(
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--device', choices=['auto', 'cuda', 'mps', 'cpu'])",
        "from typing import Literal\nDevice = Literal['cuda', 'mps', 'cpu']",
        "names = ['cuda', 'opencl', 'cpu']",
        "providers = ['CoreMLExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider']",
        "kernels = ['cuda', 'xpu']",
        "def fast(x, small):\n    if small or x.device.type not in ('cpu', 'cuda'):\n        return False\n    return x.ndim == 2",
        "count = 2\nnames = ['cuda', 'cpu'] + [f'cuda:{i}' for i in range(count)] + ['mps']",
        "from typing import Literal\nProfilerActivity = Literal['cpu', 'xpu', 'cuda']",
        "PROFILED_DEVICES = ('cpu', 'cuda')",
        "def f(device):\n    if device.type not in {'cpu', 'cuda'}:\n        return device\n    return device.index",
        "import enum\nclass Device(enum.Enum):\n    CUDA = 'cuda'\n    MPS = 'mps'\n    CPU = 'cpu'",
    ),
    hooks={"collection": _collection, "subscript": _subscript, "if": _refused, "class": _class},
    fixable=True,
)
