"""DEV101: a device written out where something is placed."""

from __future__ import annotations

import ast

from conformance.scan.findings import Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.mending import mend_device
from conformance.scan.judging.rule import Bad, Good, Rule
from conformance.scan.judging.verdicts import Placement


def _placement(context: Context, placement: Placement) -> None:
    if placement.kind != "literal":
        return
    context.report(
        RULE,
        placement.node,
        f"device '{placement.device}' is hard-coded in {placement.how}",
        severity=placement.severity,
        fix=mend_device(context, placement.node, placement.how, placement.scope),
        scope=placement.scope,
    )


def _asserted(context: Context, node: ast.Call) -> None:
    """``assert isinstance(x, torch.cuda.LongTensor)``: means a dtype, and refuses a Mac's tensors.

    A note: what calls kernels of CUDA's may have to ask for that."""
    if len(node.args) != 2 or not isinstance(context.statement, ast.Assert):
        return
    asked = context.dotted(node.args[1]) or ""
    if not (asked.startswith("torch.cuda.") and asked.endswith("Tensor")):
        return
    if context.dotted(node.func) == "isinstance" and not context.guarded("cuda"):
        message = f"only {asked} is let through: tensors of every other device are refused"
        context.report(RULE, node, message, severity=Severity.NOTE)


def _call(context: Context, node: ast.Call) -> None:
    """``Trainer(accelerator="gpu")``: whichever GPU there is, and an error where there is none."""
    _asserted(context, node)
    for keyword in node.keywords:
        value = keyword.value
        if (
            keyword.arg == "accelerator"
            and isinstance(value, ast.Constant)
            and value.value == "gpu"
        ):
            context.report(
                RULE,
                value,
                'accelerator="gpu" raises where there is no GPU; "auto" takes what is there',
                severity=Severity.WARNING,
            )
        wanted = isinstance(value, ast.Constant) and value.value is True
        if wanted and keyword.arg in ("use_cuda", "cuda") and not context.in_tests:
            # What takes it may look whether CUDA is there.
            message = f"{keyword.arg}=True asks for CUDA, and for no other device"
            if not context.guarded("cuda"):
                context.report(RULE, value, message, severity=Severity.NOTE)


RULE = Rule(
    code="DEV101",
    name="device-literal",
    severity=Severity.ERROR,
    summary="a device is hard-coded where something is placed",
    why=(
        'A tensor or model sent to "cuda" by name raises on every machine without CUDA. The '
        "literal also hides in a variable, a constant or an attribute: what counts is where the "
        "value ends up. What is left after other accelerators were asked for is a warning."
    ),
    remedy=(
        "Take the device from the caller or from a tensor in hand (`x.device`), or ask "
        "`torch.accelerator.current_accelerator()`."
    ),
    invalid=(
        Bad(
            "import torch\ndef device(x):\n    return ['xpu' for y in x if torch.backends.mps.is_available()]\n"
            "    return 'mps' if torch.backends.mps.is_available() else 'cpu'",
            3,
        ),
        Bad("import torch\nx = torch.zeros(3, device='cuda')", 2),
        Bad(
            "def usable(x):\n    if not enabled:\n        return True\n    return x.device.type == 'cuda'\n"
            "def f(x):\n    return x.to('cuda:0') if usable(x) else x",
            6,
        ),
        Bad(
            "def f(x, device):\n    return x.to('cuda:0')",
            2,
            "def f(x, device):\n    return x.to(device)",
        ),
        Bad(
            "def f(model, device):\n    model.cuda()",
            2,
            "def f(model, device):\n    model.to(device)",
        ),
        Bad("import torch as t\nd = t.device('cuda', 1)", 2),
        Bad("import torch\nstate = torch.load('x.pt', map_location='cuda')", 2),
        Bad("import torch\ntorch.set_default_device('cuda')", 2),
        Bad("def f(x, use_gpu=True):\n    if use_gpu:\n        x = x.cuda()\n    return x", 3),
        Bad("import torch\ndef f(x):\n    return x.type(torch.cuda.FloatTensor)", 3),
        Bad("def f(x):\n    return x.type('torch.cuda.HalfTensor')", 2),
        Bad(
            "import torch\ndef f(x, half):\n    kind = torch.cuda.HalfTensor if half else torch.cuda.FloatTensor\n"
            "    return x.type(kind)",
            3,
        ),
        Bad(
            "import torch\ndef f(x, i):\n    loc = 'cuda:{}'.format(i)\n    return torch.load(x, loc)",
            3,
        ),
        Bad("import torch as t\ndef f(x):\n    assert isinstance(x, t.cuda.LongTensor), x", 3),
        Bad("from lightning import Trainer\ntrainer = Trainer(accelerator='gpu', devices=1)", 2),
        Bad("import torch\nwith torch.device('cuda'):\n    pass", 2),
        Bad("def f(x):\n    return x.cuda(async=True)", 2),
        Bad(
            "def load(model, to_cuda=True):\n    if to_cuda:\n        model.cuda()\n    return model",
            3,
        ),
        Bad(
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--cuda', default=True, type=flag)\n"
            "args = p.parse_args()\nif args.cuda:\n    net = net.cuda()",
            6,
        ),
        Bad("cam = GradCAM(model, use_cuda=True)", 1),
        Bad(
            "import torch\nfast = False\ndef f(x):\n    if fast:\n        x = x.cuda()\n    return x",
            5,
        ),
        Bad("dev = 'cuda'\ndef f(x):\n    return x.to(dev)", 1),
        Bad("class A:\n    def __init__(self):\n        self.device = 'cuda'", 3),
        Bad("def f(x, i):\n    return x.to(f'cuda:{i}')", 2),
        Bad(
            "from transformers import AutoModel\nm = AutoModel.from_pretrained('x', device_map='cuda')",
            2,
        ),
        Bad(
            "import torch\nif torch.cuda.is_available():\n    print('ok')\nx = torch.ones(2, device='cuda')",
            4,
        ),
        Bad("def f(x):\n    return x.to('mps')", 2),
        Bad("def f(x):\n    return x.cuda()", 2, path="lib/model_sm2.py"),
        Bad("def outer(x):\n    def inner(y):\n        return y.cuda()\n    return inner(x)", 3),
        Bad(
            "import torch\nCUDA_DEVICE = torch.device('cuda')\ndef f(x):\n    return x.to(CUDA_DEVICE)",
            2,
        ),
        Bad("device: str = 'cuda'", 1),
        Bad("import torch\ntorch.set_default_tensor_type(torch.cuda.FloatTensor)", 2),
        Bad(
            "import torch\ndef f(x, moved):\n    left = [1]\n    for i in left:\n        x[i] = x[i].cuda()\n"
            "    return x",
            5,
        ),
        Bad(
            "from torch import nn\ndef f(module, index):\n    if isinstance(module, nn.Linear):\n"
            "        module.cuda(index)",
            4,
        ),
        Bad(
            "import torch\ndef pick():\n    found = [kind for kind in ('cuda', 'xpu') if getattr(torch, kind).is_available()]\n"
            "    device = found[0] if found else 'cuda'\n    return torch.device(device)",
            4,
        ),
    ),
    valid=(
        "class Model:\n    def parallelize(self, device_map):\n        self.layer = self.layer.to('cuda:' + str(min(device_map)))\n"
        "    def forward(self, x):\n        if self.model_parallel:\n            x = x.to('cuda:' + str(self.last))\n        return x",
        "import torch\ndef timed(x, timing=True):\n    timing = timing and torch.cuda.is_available()\n"
        "    if timing:\n        torch.cuda.synchronize()\n        x = x.cuda()\n    return x",
        "def usable(x):\n    if not enabled:\n        return False\n    if x.device.type != 'cuda':\n        return False\n"
        "    return True\ndef f(x):\n    return x.to('cuda:0') if usable(x) else x",
        "import torch\ndef f(x, i):\n    loc = 'cuda:{}'.format(i)\n    return torch.load(x, 'cpu')",
        "import torch\ndef f(x):\n    kind = torch.cuda.HalfTensor if x.is_cuda else torch.HalfTensor\n    return x.type(kind)",
        "def f(x, y):\n    return x.to(y.device)",
        "def f(x):\n    return x.to('cpu')",
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--cuda', action='store_true')\n"
        "args = p.parse_args()\nif args.cuda:\n    net = net.cuda()",
        "def load(model, to_cuda=False):\n    if to_cuda:\n        model.cuda()\n    return model",
        "import torch\ncam = GradCAM(model, use_cuda=torch.cuda.is_available())",
        Good(
            "import pytest, torch\n@pytest.fixture\ndef kernels():\n    _require_cuda()\n    return 1\n"
            "def test_a(kernels):\n    torch.ones(1, device='cuda')",
            "tests/test_kernels.py",
        ),
        Good(
            "import torch\ndef test_a():\n    skip_without_cuda()\n    torch.ones(1, device='cuda')",
            "tests/test_kernels.py",
        ),
        "import torch\ndef f(x):\n    if x.device.type == 'cuda':\n        return x.cuda()\n    return x",
        "def f(x):\n    '''Moves to 'cuda': x.to(\"cuda\").'''\n    return x",
        "import logging\nlogging.info('moving to cuda')",
        "import torch\nn = torch.cuda.device_count()\nx = [torch.ones(1, device=f'cuda:{i}') for i in range(n)]",
        "help_text = 'cuda'\nprint(help_text)",
        "def f(device):\n    return device == 'cuda'",
        "import torch\ndef f(x):\n    assert torch.cuda.is_available()\n    assert isinstance(x, torch.cuda.LongTensor)",
        "import torch\ndef f(x):\n    assert isinstance(x, (torch.LongTensor, torch.cuda.LongTensor))",
        "import torch\ndef f(x):\n    return 1 if isinstance(x, torch.cuda.LongTensor) else 2",
        "import torch\ndef f(x):\n    return torch.device('cuda').type == x.device.type",
        "def f(x):\n    try:\n        return x.cuda()\n    except RuntimeError:\n        return x",
        "import pytest, torch\n@pytest.mark.skipif(not torch.cuda.is_available(), reason='CUDA')\n"
        "def test_a():\n    torch.ones(2, device='cuda')",
        "import torch\ndef f(x):\n    if not x.is_cuda:\n        return x\n    return x.to('cuda:1')",
        "def _to_cuda(x):\n    return x.cuda()",
        "def f(x, graph):\n    moved = []\n    if graph:\n        moved = cuda_inputs(graph)\n"
        "    for i in moved:\n        x[i] = x[i].cuda()\n    return x",
        "from quantizer import Packed\ndef f(module, device):\n    if isinstance(module, Packed):\n"
        "        module.cuda(device)",
        "import torch\nMPS_DEVICE = torch.device('mps')\nCPU_DEVICE = torch.device('cpu')",
        "def f(x):\n    if False:\n        x = x.to('cuda')\n    return x",
        "import torch\ndef measure(x, device=torch.device('cuda')):\n    assert torch.cuda.is_available()",
        "def f(event, newer):\n    device_str = 'device' if newer else 'cuda'\n    return getattr(event, device_str + '_time')",
        "import torch\nkind = torch.accelerator.current_accelerator().type if hasattr(torch, 'accelerator') else 'cuda'\n"
        "device = torch.device(kind)",
        "import torch\ndef keep():\n    with torch.random.fork_rng(device_type='cuda'):\n"
        "        with torch.random.fork_rng(device_type='mps'):\n            pass",
        "import torch\ndef f(x):\n    match x.device.type:\n        case 'cuda':\n            return x.cuda()\n"
        "        case _:\n            return x",
    ),
    hooks={"placement": _placement, "call": _call},
    fixable=True,
)
