"""DEV108: double precision on, or asked of, a device that may be MPS."""

from __future__ import annotations

import ast
import re

from conformance.scan.findings import Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.knowing.shapes import is_surely_sent
from conformance.scan.reading.nodes import parts_of

_DOUBLE = {
    "torch.float64": "float32",
    "torch.double": "float32",
    "torch.complex128": "complex64",
    "torch.cdouble": "complex64",
}
_META = re.compile(r"(?:^|_)(?:meta|fake)(?:_|$)")
_METHODS = {"double": "float", "cdouble": "cfloat"}


def _double(context: Context, node: ast.expr | None) -> str | None:
    """Dotted name of a double precision dtype that an expression is."""
    if not isinstance(node, ast.Name | ast.Attribute):
        return None
    dotted = context.dotted(node)
    if dotted in _DOUBLE:
        return dotted
    value = context.resolver.only_value(node, context.scope)
    if value is not None:
        dotted = context.resolver.dotted(value[0], value[1])
    return dotted if dotted in _DOUBLE else None


def _argument(node: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in node.keywords if k.arg == name), None)


def _on_host(context: Context, node: ast.expr | None, depth: int = 0) -> bool:
    """Whether a device expression can only be the CPU."""
    if node is None:
        return True
    if isinstance(node, ast.Attribute) and node.attr == "device":
        return _placed(context, node.value, depth) is False
    if isinstance(node, ast.Name):
        value = context.resolver.only_value(node, context.scope)
        if value is not None:  # `host = torch.device("cpu")`
            return context.resolver.literal(*value) in ("cpu", "meta")
        if _is_rebound(context, node):
            return True
    leaves = context.leaves(node)
    return all(leaf.device in ("cpu", "meta") for leaf in leaves) and bool(leaves)


def _is_rebound(context: Context, node: ast.Name) -> bool:
    """Whether the function, or the module, makes a variable the host's on its way to a line."""
    bounds, owner = context.resolver.bounds(node, context.scope)
    before = [b.value for b in bounds if b.value is not None and b.value.lineno < node.lineno]
    last = max(before, key=lambda value: value.lineno, default=None)
    if last is None or context.resolver.literal(last, owner) != "cpu":
        return False
    # What a branch or a loop does may not have happened, or may happen again.
    straight = any(getattr(s, "value", None) is last for s in getattr(owner.node, "body", ()))
    later = any(b.value is not None and b.value.lineno > node.lineno for b in bounds)
    return straight and not later


def _call(context: Context, node: ast.Call) -> None:
    if context.facts.excluded.get("mps") or context.guarded("cuda", "cpu"):
        return
    owner = context.scope.enclosing("function")
    if owner is not None and _META.search(owner.name):
        return  # it describes the result, on the meta device
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr in _METHODS and not node.args:
        _method(context, node, function)
        return
    if _from_numpy(context, node):
        return
    dtype = _argument(node, "dtype")
    found = _double(context, dtype)
    name = function.attr if isinstance(function, ast.Attribute) else ""
    dotted = context.dotted(function) or ""
    if dotted == "torch.set_default_dtype" and node.args and _double(context, node.args[0]):
        context.report(
            RULE,
            node,
            "double precision becomes the default, on MPS too",
            severity=Severity.NOTE,
        )
        return
    if name in ("to", "type") and found is None:
        dtype = next((a for a in node.args if _double(context, a)), None)
        found = _double(context, dtype)
    if found is None or dtype is None:
        return
    if name in ("to", "type"):
        others = [a for a in node.args if a is not dtype]
        device = _argument(node, "device") or (others[0] if others else None)
        if device is not None:
            if not _on_host(context, device) and not _names_cuda(context, device):
                _report(context, dtype, found, "asked of a device that may be MPS")
        elif isinstance(function, ast.Attribute):
            _receiver(context, dtype, found, function.value)
        return
    device = _argument(node, "device")
    if _names_cuda(context, device):
        return
    if dotted.startswith("torch.") and device is not None and not _on_host(context, device):
        # A test that names MPS asks what happens there.
        named = context.in_tests and {leaf.device for leaf in context.leaves(device)} == {"mps"}
        # No process group has a Mac's GPU.
        level = Severity.NOTE if named or is_surely_sent(context) else None
        _report(context, dtype, found, "asked of a device that may be MPS", level)


#: Functions of NumPy that make double precision where no dtype says otherwise.
_MAKERS = frozenset(
    {"linspace", "zeros", "ones", "eye", "randn", "rand", "normal", "uniform", "logspace"}
)
#: Those whose precision is that of what they are given: double where that has a fraction.
_LIKE = frozenset({"arange", "array", "full"})


def _from_numpy(context: Context, node: ast.Call) -> bool:
    """``torch.from_numpy(np.linspace(...)).to(device)``: NumPy's own precision on a device."""
    function = node.func
    if not isinstance(function, ast.Attribute):
        return False
    inner: ast.expr | None = None
    device = _argument(node, "device") or (node.args[0] if node.args else None)
    if function.attr == "to" and isinstance(function.value, ast.Call):
        if _argument(node, "dtype") is not None or len(node.args) > 1:
            return False
        made = function.value
        if context.dotted(made.func) in ("torch.from_numpy", "torch.tensor", "torch.as_tensor"):
            inner = made.args[0] if made.args and not made.keywords else None
    elif context.dotted(function) in ("torch.tensor", "torch.as_tensor"):
        device = _argument(node, "device")
        inner = node.args[0] if node.args and _argument(node, "dtype") is None else None
    if inner is None or device is None or _is_dtype(context, device):
        return False
    if _on_host(context, device) or _names_cuda(context, device):
        return False
    value = context.resolver.only_value(inner, context.scope)
    array = value[0] if value is not None else inner
    if not isinstance(array, ast.Call) or _argument(array, "dtype") is not None:
        return False
    shaped = getattr(array.func, "attr", "") in ("zeros", "ones")
    if shaped and len(array.args) > 1:
        return False  # the dtype is the second
    dotted = context.dotted(array.func) or ""
    name = dotted.rpartition(".")[2]
    if not dotted.startswith("numpy."):
        return False
    if name not in _MAKERS and not (name in _LIKE and _has_fraction(array)):
        return False
    level = Severity.NOTE if context.in_tests else None
    message = "NumPy's float64 is moved to a device that may be MPS"
    context.report(RULE, node, message, severity=level)
    return True


def _has_fraction(node: ast.Call) -> bool:
    """Whether a number with a fraction is written among the arguments of a call."""
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, float)
        for argument in node.args
        for part in parts_of(argument)
    )


def _method(context: Context, node: ast.Call, function: ast.Attribute) -> None:
    where = _placed(context, function.value)
    if where is False:
        return
    fix = None
    start = context.span(function)[1] - len(function.attr)
    edit = context.replace(function, context.source.text[context.span(function)[0] : start])
    edit = type(edit)(start, edit.end, _METHODS[function.attr])
    fix = Fix((edit,))
    context.report(
        RULE,
        node,
        f".{function.attr}() on a tensor that may be on MPS",
        severity=Severity.WARNING if where else Severity.NOTE,
        fix=fix,
    )


def _receiver(context: Context, dtype: ast.expr, found: str, receiver: ast.expr) -> None:
    where = _placed(context, receiver)
    if where is False:
        return
    _report(
        context,
        dtype,
        found,
        "asked of a tensor that may be on MPS",
        Severity.WARNING if where else Severity.NOTE,
    )


def _report(
    context: Context, node: ast.expr, found: str, what: str, severity: Severity | None = None
) -> None:
    short = found.removeprefix("torch.")
    fix = None
    if isinstance(node, ast.Attribute):
        owner = context.segment(node.value)
        fix = Fix((context.replace(node, f"{owner}.{_DOUBLE[found]}"),))
    context.report(RULE, node, f"{short} is {what}", severity=severity, fix=fix)


def _placed(context: Context, node: ast.expr, depth: int = 0) -> bool | None:
    """Whether a tensor expression was put on a device: True, False (on the host) or unknown."""
    if isinstance(node, ast.Name) and depth < 4:
        if _is_brought_back(context, node):
            return False
        value = context.resolver.only_value(node, context.scope)
        if value is not None:
            return _placed(context, value[0], depth + 1)
        return False if _starts_on_host(context, node, depth) else None
    if isinstance(node, ast.BinOp):
        sides = [_placed(context, side, depth + 1) for side in (node.left, node.right)]
        return False if False in sides else None
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else ""
    if name in ("cpu", "numpy", "from_numpy", "tolist"):
        return False
    if name == "cuda" and isinstance(function, ast.Attribute):
        return False  # written out as CUDA, which has it
    device = _argument(node, "device")
    if name == "to" and device is None and node.args:
        first = node.args[0]
        if not _double(context, first) and not _is_dtype(context, first):
            device = first
    if device is not None:
        return not _on_host(context, device, depth + 1)
    dotted = context.dotted(function) or ""
    if dotted.startswith("torch.") and dotted.count(".") == 1:
        if name in ("tensor", "zeros", "ones", "arange", "linspace", "empty", "full", "eye"):
            return False
        return _placed(context, node.args[0], depth + 1) if node.args and depth < 4 else None
    if isinstance(function, ast.Attribute) and depth < 6:
        return _placed(context, function.value, depth + 1)
    return None


def _is_brought_back(context: Context, node: ast.Name) -> bool:
    """Whether the last value that a variable gets before this line is one on the host."""
    before = [
        bound.value
        for bound in context.resolver.bounds(node, context.scope)[0]
        if bound.value is not None and bound.value.lineno < node.lineno
    ]
    last = max(before, key=lambda value: value.lineno, default=None)
    if not isinstance(last, ast.Call) or not isinstance(last.func, ast.Attribute):
        return False
    if last.func.attr == "cpu":
        return True
    return last.func.attr == "to" and any(
        context.resolver.literal(part, context.scope) == "cpu" for part in last.args[:1]
    )


def _names_cuda(context: Context, device: ast.expr | None) -> bool:
    """Whether a device is written out as another than MPS: that is said already, of the device."""
    devices = {leaf.device for leaf in context.leaves(device)} if device is not None else set()
    return bool(devices) and devices <= {"cuda", "xpu", "cpu", "meta"}


def _starts_on_host(context: Context, node: ast.Name, depth: int) -> bool:
    """Whether a variable is made on the host, and every later value of it is made from it."""
    first, *later = [bound.value for bound in context.resolver.bounds(node, context.scope)[0]] or [
        None
    ]
    if first is None or _placed(context, first, depth + 1) is not False:
        return False
    return all(
        value is not None
        and any(isinstance(part, ast.Name) and part.id == node.id for part in parts_of(value))
        for value in later
    )


def _is_dtype(context: Context, node: ast.expr) -> bool:
    dotted = context.dotted(node) or ""
    return "float" in dotted or "int" in dotted or "dtype" in dotted or "half" in dotted


RULE = Rule(
    code="DEV108",
    name="double-on-device",
    severity=Severity.WARNING,
    summary="double precision on a device that may be MPS",
    why=(
        "MPS has no float64 and no complex128: the conversion raises TypeError. Moving such code "
        "from cuda to the caller's device is therefore not enough."
    ),
    remedy="Compute in float32, or in float64 on the host: `x.cpu().double()`.",
    invalid=(
        Bad(
            "import numpy as np\nimport torch\ndef f(device):\n    return torch.from_numpy(np.linspace(0, 1, 3)).to(device)",
            4,
        ),
        Bad(
            "import numpy as np\nimport torch\ndef f(x):\n    noise = np.random.randn(3)\n    return torch.from_numpy(noise).to(x.device)",
            5,
        ),
        Bad(
            "import numpy as np\nimport torch\ndef f(device):\n    return torch.tensor(np.zeros(3), device=device)",
            4,
        ),
        Bad("import torch\ndef f(x, device):\n    return x.to(device, torch.float64)", 3),
        Bad(
            'def f(x, y, device):\n    if y:\n        device = "cpu"\n    return x.to(device).double()',
            4,
            'def f(x, y, device):\n    if y:\n        device = "cpu"\n    return x.to(device).float()',
        ),
        Bad(
            "import torch\ndef f(n, device):\n    return torch.zeros(n, dtype=torch.float64, device=device)",
            3,
            "import torch\ndef f(n, device):\n    return torch.zeros(n, dtype=torch.float32, device=device)",
        ),
        Bad(
            "def f(x, device):\n    return x.to(device).double()",
            2,
            "def f(x, device):\n    return x.to(device).float()",
        ),
        Bad(
            "import torch\nimport torch.distributed as dist\ndef f(n, device):\n"
            "    x = torch.zeros(n, dtype=torch.float64, device=device)\n    if dist.is_initialized():\n"
            "        dist.all_reduce(x)\n    return x",
            4,
        ),
        Bad(
            "import torch\ndef f(x, y):\n    return torch.ones(3, dtype=torch.complex128, device=y.device)",
            3,
        ),
        Bad(
            "import torch\ndef f(x, device):\n    dtype = torch.float64\n    return torch.tensor(x, dtype=dtype, device=device)",
            4,
        ),
        Bad(
            "import torch\ndef f(a, device):\n    x = torch.tensor(a, device=device)\n    return x.to(torch.float64)",
            4,
        ),
    ),
    valid=(
        'def f(x, device):\n    device = "cpu"\n    return x.to(device).double()',
        "def f(x):\n    return x.cpu().double()",
        "def f(x, device):\n    x = x.to(device)\n    x = x.cpu()\n    return x.double()",
        "import torch\ndef f(x, device):\n    x = x.to(device)\n    x = x.to('cpu')\n    return x.to(torch.float64)",
        "import torch\ndef f():\n    return torch.zeros(3, dtype=torch.float64, device='cuda')",
        "def f(x):\n    return x.cuda().double()",
        "import torch\ndef f(y):\n    x = torch.as_tensor(y, device=x.device)\n    return x.to(torch.float32)",
        "import torch\ndef f(x):\n    return x.to('cuda', torch.float64)",
        "import numpy as np\nimport torch\ndef f(device):\n    return torch.from_numpy(np.zeros(3, dtype=np.float32)).to(device)",
        "import numpy as np\nimport torch\ndef f(device):\n    return torch.from_numpy(np.zeros(3)).float().to(device)",
        "import numpy as np\nimport torch\ndef f(device):\n    return torch.tensor(np.zeros(3), dtype=torch.float32, device=device)",
        "import torch\nx = torch.zeros(3, dtype=torch.float64)",
        "import torch\ndef f(n):\n    x = torch.arange(n, device='cpu')\n    x = torch.outer(x, x)\n"
        "    return torch.ones(n, device=x.device, dtype=torch.float64)",
        "import torch\ndef scale_meta(x):\n    return torch.empty(1, dtype=torch.double, device=x.device)",
        "import torch\ndef f(x):\n    host = torch.device('cpu')\n    return x.to(host).double()",
        "import torch\nhost = torch.device('cpu')\nx = torch.zeros(3, dtype=torch.float64, device=host)",
        "import numpy as np\nx = np.zeros(3, dtype=np.float64)",
        "import torch\ndef f(x, device):\n    return x.to('cpu', torch.float64)",
        "import torch\ndef f(x, device):\n    if device.type == 'mps':\n        return x.to(device)\n"
        "    return x.to(device, torch.float64)",
        "import torch\ndef f(n, device):\n    d = torch.float32 if device.type == 'mps' else torch.float64\n"
        "    return torch.zeros(n, dtype=d, device=device)",
    ),
    hooks={"call": _call},
    fixable=True,
)
