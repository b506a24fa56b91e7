"""Replacement texts that several rules' fixes share.

Each keeps what CUDA users get: the caller's flags, the index of a device, a text where there was
one. The newest form comes first, with the forms for an older PyTorch behind it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from conformance.scan.findings import Edit, Fix
from conformance.scan.judging.context import Context
from conformance.scan.knowing.scopes import Scope
from conformance.scan.reading.nodes import parts_of

_PROBE = "torch.cuda.is_available"
_INDEX = re.compile(r"(?:.*[._])?(?:rank|index|idx|i)\Z")
#: What ``torch.mps`` has of ``torch.cuda``'s functions.
_ON_MPS = ("empty_cache", "synchronize")


def any_device(torch: str, *, as_text: bool) -> list[str]:
    """Expressions for the accelerator that is there, else the CPU, the newest first."""
    newest = (
        f'({torch}.accelerator.current_accelerator(check_available=True) or {torch}.device("cpu"))'
    )
    older = in_turn(torch, '"cuda"')
    return [f"{newest}.type", older] if as_text else [newest, f"{torch}.device{older}"]


def in_turn(torch: str, cuda: str, *, as_device: bool = False) -> str:
    """``cuda`` where CUDA is found, else MPS, else the CPU: exactly what CUDA users had."""
    rest = f'"mps" if {torch}.backends.mps.is_available() else "cpu"'
    rest = f"{torch}.device({rest})" if as_device else rest
    return f"({cuda} if {torch}.cuda.is_available() else {rest})"


def alternatives(
    context: Context, node: ast.expr, texts: Sequence[str], *, safe: bool = False
) -> Fix:
    """The fix that puts the first text in place of a node, or a later one for an older PyTorch."""
    edits = [(context.replace(node, text),) for text in texts]
    return Fix(edits[0], safe, tuple(edits[1:]))


def mend_device(
    context: Context, node: ast.expr, how: str, scope: Scope | None = None
) -> Fix | None:
    """Unsafe fix of a device literal (or ``x.cuda()``) that reaches the place ``how``."""
    if how.startswith(("set_default_tensor_type", "type()", '"')):
        return None
    outer, context.scope = context.scope, scope or context.scope
    try:
        function = node.func if isinstance(node, ast.Call) else None
        if isinstance(function, ast.Attribute) and function.attr == "cuda":
            return _method_fix(context, node, function)
        texts = _texts(context, node, how)
    finally:
        context.scope = outer
    return alternatives(context, node, texts) if texts else None


def _texts(context: Context, node: ast.expr, how: str) -> list[str]:
    """What may stand in place of a literal; nothing where it is of another kind."""
    torch = context.torch_name()
    is_device = isinstance(node, ast.Call)
    segment = context.segment(node)
    named = _named(node)
    if named is None:
        return []
    held = context.device_expression()
    as_text = "type" in how or not (is_device or how.endswith(("()", "=")))
    if held is not None and named in ("cuda", "cuda:0", "mps"):
        if not as_text:
            return [held]
        if held != "device":
            return [f"{held}.type"]
        if torch is not None and how.startswith("device_type"):
            return [f"{torch}.device(device).type"]
    if torch is None or named == "mps":
        return []
    if named != "cuda":
        if _is_asked(context, node):
            return []  # a choice that another finding is about
        return [in_turn(torch, segment, as_device=is_device)]
    return any_device(torch, as_text=not is_device)


def _is_asked(context: Context, node: ast.expr) -> bool:
    """Whether the line of a literal asks for CUDA itself."""
    return any(
        isinstance(part, ast.Attribute)
        and part.attr == "is_available"
        and part.lineno == node.lineno
        for part in parts_of(context.statement)
    )


def _named(node: ast.expr) -> str | None:
    """The device that a literal names: ``cuda``, ``cuda:1``, or ``cuda:?`` where it is computed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "cuda:?"
    if isinstance(node, ast.Call) and node.args:
        inner = _named(node.args[0])
        return "cuda:?" if inner is not None and (len(node.args) > 1 or node.keywords) else inner
    return None


def _method_fix(context: Context, node: ast.expr, function: ast.Attribute) -> Fix | None:
    """``x.cuda(non_blocking=True)`` as ``x.to(device, non_blocking=True)``."""
    assert isinstance(node, ast.Call)
    if any(keyword.arg != "non_blocking" for keyword in node.keywords):
        return None
    torch = context.torch_name()
    rest = "".join(f", non_blocking={context.segment(k.value)}" for k in node.keywords)
    if node.args:
        index = context.segment(node.args[0])
        if torch is None or not (index.isdigit() or _INDEX.match(index)):
            return None
        named = f'"cuda:{index}"' if index.isdigit() else f'f"cuda:{{{index}}}"'
        texts = [in_turn(torch, named)[1:-1]]
    else:
        held = context.device_expression()
        texts = [held] if held is not None else []
        if not texts and torch is not None:
            texts = [text.strip() for text in any_device(torch, as_text=False)]
    owner = context.segment(function.value)
    return alternatives(context, node, [f"{owner}.to({t}{rest})" for t in texts]) if texts else None


def mend_choice(context: Context, node: ast.IfExp, literal: ast.expr, how: str) -> Fix | None:
    """Unsafe fix of a conditional expression between a device and the CPU.

    The bare question whether CUDA is there becomes that for any accelerator; whatever else the
    test asks is kept, and asked of MPS as well.
    """
    torch = context.torch_name()
    probes = [
        part
        for part in parts_of(node.test)
        if isinstance(part, ast.Call) and context.dotted(part.func) == _PROBE
    ]
    if not probes:
        return mend_device(context, literal, how)
    if torch is None:
        return None
    bare = node.test.operand if isinstance(node.test, ast.UnaryOp) else node.test
    if bare is probes[0] and _named(literal) == "cuda":
        return alternatives(
            context, node, any_device(torch, as_text=not isinstance(literal, ast.Call))
        )
    test = context.segment(node.test)
    asked = test
    for probe in probes:
        asked = asked.replace(context.segment(probe.func), f"{torch}.backends.mps.is_available")
    if ".cuda" in asked or "\n" in test:
        return None  # it asks CUDA for more than its presence
    if literal is not node.body:
        test, asked = f"not ({test})", f"not ({asked})"
    mps = f'{torch}.device("mps")' if isinstance(literal, ast.Call) else '"mps"'
    other = context.segment(node.orelse if literal is node.body else node.body)
    text = f"{context.segment(literal)} if {test} else {mps} if {asked} else {other}"
    return alternatives(context, node, [text])


def rename_call(context: Context, call: ast.Call, path: str, *, safe: bool = False) -> Fix | None:
    """Fix that calls ``torch.<path>`` with the same arguments."""
    torch = context.torch_name()
    if torch is None:
        return None
    return Fix((context.replace(call.func, f"{torch}.{path}"),), safe)


def answer_without(context: Context, call: ast.Call, name: str, nothing: str) -> Fix | None:
    """Unsafe fix of a question that CUDA answers with "nothing" where it is not there.

    Those of ``torch.accelerator`` raise on a machine without any, so each gets its own test.
    """
    torch = context.torch_name()
    if torch is None or len(call.args) + len(call.keywords) > 1:
        return None
    inner = [*call.args, *(keyword.value for keyword in call.keywords)]
    given = context.segment(inner[0]) if inner else ""
    texts = [
        f"({torch}.accelerator.{name}({given}) if {torch}.accelerator.is_available() else {nothing})"
    ]
    on_mps = {"memory_allocated": "current", "memory_reserved": "driver"}.get(name)
    if on_mps is not None:
        mps = f"{torch}.mps.{on_mps}_allocated_memory() if {torch}.backends.mps.is_available()"
        asked = f"{context.segment(call)} if {torch}.cuda.is_available()"
        texts.append(f"({mps} else {asked} else {nothing})")
    return alternatives(context, call, texts)


def alone_on_its_line(context: Context, node: ast.expr) -> str | None:
    """Indentation of a statement that is only this expression on one line of its own."""
    statement = context.statement
    if not isinstance(statement, ast.Expr) or statement.value is not node:
        return None
    if node.lineno != node.end_lineno:
        return None
    line = context.source.lines[node.lineno - 1]
    start = context.source.column(node.lineno, node.col_offset)
    end = context.source.column(node.lineno, node.end_col_offset or 0)
    rest = line[end:].strip()
    if line[:start].strip() or (rest and not rest.startswith("#")):
        return None
    return line[:start]


def guard_statement(context: Context, call: ast.Call, name: str) -> Fix | None:
    """Safe fix: the statement becomes ``torch.accelerator.<name>()`` for whichever one is there.

    Unlike CUDA's own functions, those of ``torch.accelerator`` raise on a machine without any,
    so the call gets its own test. An older PyTorch is asked for CUDA, then for MPS.
    """
    indent = alone_on_its_line(context, call)
    torch = context.torch_name()
    if indent is None or torch is None or call.args or call.keywords:
        return None
    step = "\t" if indent.startswith("\t") else "    "
    end = "\r\n" if "\r\n" in context.source.text else "\n"
    below = f"{end}{indent}{step}"
    newest = f"if {torch}.accelerator.is_available():{below}{torch}.accelerator.{name}()"
    guarded = f"if {torch}.cuda.is_available():{below}{torch}.cuda.{name}()"
    texts = [newest, guarded]
    if name in _ON_MPS:
        # The MPS branch first: a comment behind the statement stays behind CUDA's.
        mps = f"if {torch}.backends.mps.is_available():{below}{torch}.mps.{name}(){end}{indent}"
        texts.insert(1, f"{mps}el{guarded}")
    return alternatives(context, call, texts, safe=True)


def insert_after(context: Context, node: ast.expr, text: str) -> Edit:
    """The edit that puts a text right behind a node."""
    end = context.span(node)[1]
    return Edit(end, end, text)
