"""DEV111: a CUDA-only engine or kernel chosen without looking at the device."""

from __future__ import annotations

import ast

from conformance.scan.findings import Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.knowing.alternatives import mentions
from conformance.scan.knowing.circumstances import (
    holds_group,
    is_called_for_group,
    is_of_process_group,
    makes_group,
    may_not_be_group,
)
from conformance.scan.knowing.scopes import FunctionNode

_ENGINES = {
    "vllm": "vllm",
    "tensorrt": "TensorRT",
    "tensorrt_llm": "TensorRT",
    "sglang": "sglang",
    "nccl": "NCCL",
    "flash_attn": "flash attention",
    "flash_attention": "flash attention",
    "flash_attention_2": "flash attention",
    "flash_attention_3": "flash attention",
    "flash-attn": "flash attention",
    "bitsandbytes": "bitsandbytes",
    "cupy": "cupy",
    "apex": "apex",
    "cudnn": "cuDNN",
    "cudagraphs": "CUDA graphs",
    "xformers": "xformers",
}
_SETTINGS = (
    "backend",
    "engine",
    "attn_implementation",
    "attention",
    "attn",
    "kernel",
    "dist_backend",
    "_attn_implementation",
    "llm_backend",
    "attn_mode",
)
#: Engines that have begun to serve others as well.
_POORER = {"bitsandbytes": Severity.WARNING}
_OPTIONS = frozenset({"add_argument", "option", "Option", "Argument", "Field", "field"})
_WIDGETS = frozenset({"Dropdown", "Radio", "selectbox", "radio"})
_FIRST = {"torch.distributed.init_process_group", "torch.distributed.new_group"}


def _engine(context: Context, node: ast.expr | None) -> str | None:
    """CUDA-only engine that an expression names outright."""
    if node is None:
        return None
    text = context.resolver.text(node, context.scope)
    return _ENGINES.get(text.lower()) if text is not None else None


def _is_setting(name: str | None) -> bool:
    low = (name or "").lower().strip("-").replace("-", "_")
    return low in _SETTINGS or low.endswith(("_backend", "_engine", "_attn_implementation"))


def _report(
    context: Context,
    node: ast.expr,
    engine: str,
    where: str,
    setting: str | None = None,
    *,
    starts: bool = False,
) -> None:
    """Report an engine, unless the setting is one of that engine's own (``vllm_model_impl``).

    ``starts`` says that the line starts it. A setting that names NCCL is read by runs in several
    processes alone.
    """
    held = context.resolver.only_value(node, context.scope) if engine == "NCCL" else None
    if held is not None and isinstance(held[0], ast.Constant):
        node = held[0]  # a process group has one backend: said once, where it is written
    grouped = engine == "NCCL" and (
        not starts
        or is_of_process_group(context)
        or may_not_be_group(context)
        or is_called_for_group(context)
    )
    word = engine.partition(" ")[0].lower()
    if not context.guarded("cuda") and word not in (setting or "").lower():
        context.report(
            RULE,
            node,
            f"{engine}, which needs CUDA, is {where} whatever the device is",
            # A test that names an engine means that one.
            severity=Severity.NOTE if context.in_tests or grouped else _POORER.get(engine),
        )


def _call(context: Context, node: ast.Call) -> None:
    function = node.func
    dotted = context.dotted(function) or ""
    name = function.attr if isinstance(function, ast.Attribute) else dotted.rpartition(".")[2]
    if context.decorating and name not in _OPTIONS:
        return
    if name in _OPTIONS:
        _option(context, node)
        return
    if name in _WIDGETS:
        for keyword in node.keywords:
            engine = _engine(context, keyword.value) if keyword.arg == "value" else None
            if engine is not None:
                _report(context, keyword.value, engine, "the preselected entry")
        return
    if (dotted in _FIRST or name == "init_process_group") and node.args:
        engine = _engine(context, node.args[0])
        if engine is not None:
            _report(context, node.args[0], engine, "used", starts=makes_group(node))
    for keyword in node.keywords:
        if _is_setting(keyword.arg):
            engine = _engine(context, keyword.value)
            if engine is not None:
                _report(context, keyword.value, engine, "used", starts=makes_group(node))
    if name in ("get", "pop", "getenv", "setdefault") and len(node.args) == 2:
        engine = _engine(context, node.args[1])
        if engine is not None:
            _report(context, node.args[1], engine, "the default")
    _quantised(context, node, name)
    if name == "sdpa_kernel" and len(node.args) == 1:
        _sdpa(context, node)


def _asks_bits(word: str) -> bool:
    low = word.lower()
    return any(part in low for part in ("bit", "bnb", "quant"))


def _quantised(context: Context, node: ast.Call, name: str) -> None:
    """``load_in_8bit=True``, ``BitsAndBytesConfig(load_in_4bit=True)``: kernels for CUDA.

    Who asked for them by a setting of that name knows.
    """
    found: ast.expr | None = node if name == "BitsAndBytesConfig" else None
    for keyword in node.keywords:
        asked = keyword.arg in ("load_in_8bit", "load_in_4bit")
        if asked and isinstance(keyword.value, ast.Constant) and keyword.value.value is True:
            found = keyword.value
    if found is not None and not any(mentions(part, _asks_bits) for part in context.branches):
        _report(context, found, "bitsandbytes", "used")


def _sdpa(context: Context, node: ast.Call) -> None:
    argument = node.args[0]
    kernels = argument.elts if isinstance(argument, ast.List | ast.Tuple) else [argument]
    names = [(context.dotted(kernel) or "").rpartition(".")[2] for kernel in kernels]
    only = {"FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"}
    if names and all(name in only for name in names):
        _report(context, argument, "the fused attention kernel", "the only one allowed")


def _option(context: Context, node: ast.Call) -> None:
    target = getattr(context.statement, "target", None)
    setting = target.id if isinstance(target, ast.Name) else None
    if node.args and setting is None:
        setting = context.resolver.text(node.args[0], context.scope)
    for keyword in node.keywords:
        if keyword.arg == "default":
            engine = _engine(context, keyword.value)
            if engine is not None:
                _report(context, keyword.value, engine, "the default", setting)
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if node.args and name in ("Option", "Field"):
        engine = _engine(context, node.args[0])
        if engine is not None:
            _report(context, node.args[0], engine, "the default")


def _function(context: Context, node: FunctionNode) -> None:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    offset = len(positional) - len(arguments.defaults)
    pairs: list[tuple[ast.arg, ast.expr | None]] = [
        *zip(positional[offset:], arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    if node.name.startswith(("is_", "has_", "check_", "supports_", "_is_", "_check_")):
        return
    for argument, default in pairs:
        engine = _engine(context, default)
        if engine is not None and default is not None and not _is_only_choice(argument):
            where = f"the default of `{argument.arg}`"
            starts = context.once(holds_group, node)
            _report(context, default, engine, where, argument.arg, starts=starts)


def _is_only_choice(argument: ast.arg) -> bool:
    """Whether the annotation allows this one value: ``backend: Literal["NCCL"] = "NCCL"``."""
    note = argument.annotation
    return isinstance(note, ast.Subscript) and isinstance(note.slice, ast.Constant)


def _assign(context: Context, node: ast.Assign | ast.AnnAssign) -> None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    engine = _engine(context, node.value) if isinstance(node.value, ast.Constant) else None
    if engine is None or node.value is None or context.branches:
        return
    for target in targets:
        name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
        # A name that is bound again holds one choice of several.
        again = isinstance(target, ast.Name) and len(context.scope.names.get(name, ())) > 1
        if _is_setting(name) and not again:
            starts = context.once(holds_group, context.scope.node)
            _report(context, node.value, engine, f"set as `{name}`", name, starts=starts)


RULE = Rule(
    code="DEV111",
    name="cuda-only-engine",
    severity=Severity.ERROR,
    summary="an engine or kernel that needs CUDA is chosen whatever the device is",
    why=(
        "vllm, NCCL, flash attention and the like have no build for a Mac. As a default they make "
        "the first run fail for everyone who did not change it."
    ),
    remedy='Choose by device: `"vllm" if device.type == "cuda" else "pt"`, `"nccl"` or `"gloo"`.',
    invalid=(
        Bad(
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--backend', default='vllm', choices=['vllm', 'pt'])",
            3,
        ),
        Bad("import gradio as gr\ngr.Dropdown(choices=['vllm', 'pt'], value='vllm')", 2),
        Bad("def initialize(path, backend='vllm'):\n    return path", 1),
        Bad("import torch.distributed as dist\ndist.init_process_group('nccl')", 2),
        Bad(
            "from transformers import AutoModel\nAutoModel.from_pretrained('x', load_in_8bit=True)",
            2,
        ),
        Bad(
            "from transformers import BitsAndBytesConfig\nq = BitsAndBytesConfig(load_in_4bit=True)",
            2,
        ),
        Bad("import torch\ntorch.distributed.init_process_group(backend='nccl')", 2),
        Bad(
            "from transformers import AutoModel\nAutoModel.from_pretrained('x', attn_implementation='flash_attention_2')",
            2,
        ),
        Bad("import os\nbackend = os.environ.get('BACKEND', 'vllm')", 2),
        Bad("BACKEND = 'vllm'\ndef f(backend=BACKEND):\n    return backend", 1),
        Bad(
            "from torch.nn.attention import SDPBackend, sdpa_kernel\nwith sdpa_kernel(SDPBackend.FLASH_ATTENTION):\n    pass",
            2,
        ),
        Bad(
            "from dataclasses import dataclass\n@dataclass\nclass C:\n    backend: str = 'vllm'", 4
        ),
    ),
    valid=(
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--backend', default='pt', choices=['vllm', 'pt'])",
        "import torch\ndef f(device):\n    torch.distributed.init_process_group('nccl' if device.type == 'cuda' else 'gloo')",
        "import torch\ndef f():\n    if torch.cuda.is_available():\n        torch.distributed.init_process_group('nccl')",
        "names = ['vllm', 'pt']",
        "from transformers import BitsAndBytesConfig\ndef f(quantization):\n    if quantization == 'bnb-4bit':\n"
        "        return BitsAndBytesConfig(load_in_4bit=True)",
        "def check_dependencies(backend='vllm'):\n    return backend",
        "from dataclasses import dataclass, field\n@dataclass\nclass C:\n    vllm_model_impl: str = field(default='vllm')",
        "def pick(kind, table):\n    backend = 'nccl'\n    if kind in table:\n        backend = table[kind]\n    return backend",
        "def f(backend):\n    if backend == 'vllm':\n        return 1",
        "from torch.nn.attention import SDPBackend, sdpa_kernel\nwith sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):\n    pass",
    ),
    hooks={"call": _call, "function": _function, "assign": _assign},
)
