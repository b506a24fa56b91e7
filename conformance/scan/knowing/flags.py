"""What a test says by its words alone: probes, flags, version checks and texts."""

from __future__ import annotations

import ast

from conformance.scan.knowing.facts import NOTHING, UNKNOWN, Pair, excluded, known
from conformance.scan.knowing.vocabulary import (
    NAMESPACES,
    PROBES,
    device_type,
    is_cpu_flag,
    is_negated,
    named_backends,
    torch_is_newer,
)


def probed_backend(dotted: str) -> str | None:
    """Backend whose presence a function asks for (``torch.cuda.is_available``), or None."""
    parts = dotted.split(".")
    if len(parts) < 3 or parts[0] != "torch":
        return None
    if parts[1] == "backends":
        return parts[2] if parts[2] in NAMESPACES and parts[-1] in PROBES else None
    if parts[1] in NAMESPACES and (parts[-1] in PROBES or "capability" in parts[-1]):
        return parts[1]
    return None


def flag(identifier: str, node: ast.AST) -> Pair:
    """What the name of a flag says about the backend."""
    if identifier == "model_parallel":
        return known("name", "cuda", node=node), NOTHING  # over several cards, which no Mac has
    if is_cpu_flag(identifier):
        return known("name", "cpu", node=node), excluded("cpu", node=node)
    backends = named_backends(identifier)
    if not backends:
        newer = torch_is_newer(identifier)
        return UNKNOWN if newer is None else version(newer, node)
    true, false = known("name", *backends, node=node), excluded(*backends, node=node)
    return (false, true) if is_negated(identifier) else (true, false)


def version(newer: bool, node: ast.AST) -> Pair:
    """A test of PyTorch's version: the older branch has nothing but CUDA to work with."""
    old = known("name", "cuda", node=node)
    return (NOTHING, old) if newer else (old, NOTHING)


def matched(test: ast.Call, function: ast.Attribute) -> Pair | None:
    """``device.startswith("cuda")`` and its like."""
    text = test.args[0] if test.args else None
    if (
        function.attr in ("startswith", "match", "search", "fullmatch")
        and isinstance(text, ast.Constant)
        and isinstance(text.value, str)
    ):
        device = device_type(text.value.strip(":^$"))
        if device is not None:
            return known("test", device, node=test), excluded(device, node=test)
    return None


def asked(test: ast.Call, dotted: str) -> Pair:
    """What the name of a function says that answers a question, and what it is given."""
    function = test.func
    name = function.attr if isinstance(function, ast.Attribute) else dotted
    name = name or getattr(function, "id", "")  # a function of this file
    if name.endswith("is_torch_version"):
        return version(not _first_text(test).startswith("<"), test)
    pair = flag(name.rpartition(".")[2], test)
    for keyword in test.keywords:
        # `is_torch_xla_available(check_is_gpu=True)`
        if keyword.arg and isinstance(keyword.value, ast.Constant) and keyword.value.value:
            more = flag(keyword.arg, test)
            pair = pair[0].both(more[0]), pair[1]
    if pair[0] is NOTHING and dotted.startswith("importlib."):
        return flag(_first_text(test), test)
    if pair[0] is NOTHING and dotted in ("os.environ.get", "os.getenv"):
        return flag(_first_text(test), test)
    if pair[0] is NOTHING and any(
        word in name for word in ("available", "installed", "has_", "can_import", "on_device")
    ):
        return flag(_first_text(test), test)
    return pair


def _first_text(call: ast.Call) -> str:
    """The first argument where it is a text or a name, else nothing."""
    first = call.args[0] if call.args else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        return first.value
    return first.id if isinstance(first, ast.Name) else ""
