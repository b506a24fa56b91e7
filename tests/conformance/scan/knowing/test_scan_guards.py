"""Names are resolved and guards understood: tables of code and what is said of it."""

from __future__ import annotations

import textwrap

import pytest

from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES


def scan(code: str, path: str = "module.py") -> list[Finding]:
    return analyse(path, textwrap.dedent(code).encode(), RULES)


def codes(code: str, path: str = "module.py") -> list[str]:
    return [f.code for f in scan(code, path) if f.severity > Severity.NOTE]


SYNC = "torch.cuda.synchronize()"
GUARDS = {
    "if": "if torch.cuda.is_available():\n    {c}",
    "elif": "if x:\n    pass\nelif torch.cuda.is_available():\n    {c}",
    "negated else": "if not torch.cuda.is_available():\n    pass\nelse:\n    {c}",
    "double negation": "if not (not torch.cuda.is_available()):\n    {c}",
    "and": "if x and torch.cuda.is_available() and y:\n    {c}",
    "negated or": "if not (x or not torch.cuda.is_available()):\n    {c}",
    "or of two tests": "if device == 'cuda' or t.is_cuda:\n    {c}",
    "short circuit": "torch.cuda.is_available() and {c}",
    "short circuit or": "not torch.cuda.is_available() or {c}",
    "ternary": "x = {c} if torch.cuda.is_available() else None",
    "negated ternary": "x = None if not torch.cuda.is_available() else {c}",
    "assert": "assert torch.cuda.is_available()\n{c}",
    "exit": "import sys\nif not torch.cuda.is_available():\n    sys.exit('no')\n{c}",
    "raise": "if not torch.cuda.is_available():\n    raise RuntimeError\n{c}",
    "count": "if torch.cuda.device_count() >= 2:\n    {c}",
    "zero count": "if torch.cuda.device_count() == 0:\n    raise SystemExit\n{c}",
    "bare count": "if torch.cuda.device_count():\n    {c}",
    "version": "if torch.version.cuda is not None:\n    {c}",
    "walrus": "if (ok := torch.cuda.is_available()):\n    {c}",
    "variable": "ok = torch.cuda.is_available()\nif ok:\n    {c}",
    "chain of variables": "a = torch.cuda.is_available()\nb = a and x\nif b:\n    {c}",
    "named flag": "if args.use_cuda:\n    {c}",
    "negative flag": "if not args.no_cuda:\n    {c}",
    "setting": "if config['cuda']:\n    {c}",
    "type": "if device.type == 'cuda':\n    {c}",
    "type reversed": "if 'cuda' == device.type:\n    {c}",
    "type unequal": "if device.type != 'cuda':\n    raise ValueError\n{c}",
    "type in": "if device.type in ('cuda', 'xpu'):\n    {c}",
    "text in": "if 'cuda' in str(device):\n    {c}",
    "startswith": "if str(device).startswith('cuda'):\n    {c}",
    "is_cuda": "if t.is_cuda:\n    {c}",
    "all of them": "if all(t.is_cuda for t in ts):\n    {c}",
    "any of a list": "if any([t.is_cuda, device == 'cuda']):\n    {c}",
    "enumeration": "if kind == Kind.CUDA:\n    {c}",
    "engine": "if backend == 'nccl':\n    {c}",
    "environment": "import os\nif 'CUDA_HOME' in os.environ:\n    {c}",
    "isinstance": "if isinstance(t, torch.cuda.FloatTensor):\n    {c}",
    "match": "match device.type:\n    case 'cuda':\n        {c}",
    "match or": "match device.type:\n    case 'cuda' | 'xpu':\n        {c}",
    "match on a test": "match torch.cuda.is_available():\n    case True:\n        {c}",
    "while": "while torch.cuda.is_available():\n    {c}",
    "comprehension": "[{c} for x in y if torch.cuda.is_available()]",
    "loop over devices": "for i in range(torch.cuda.device_count()):\n    {c}",
    "try": "try:\n    {c}\nexcept Exception:\n    print('none')",
    "try of two": "try:\n    {c}\nexcept (AssertionError, ValueError):\n    print('none')",
    "suppress": "import contextlib\nwith contextlib.suppress(RuntimeError):\n    {c}",
    "helper by name": "from utils import has_cuda\nif has_cuda():\n    {c}",
    "helper by content": "def ready():\n    return torch.cuda.is_available()\nif ready():\n    {c}",
    "helper of helpers": "def a():\n    return torch.cuda.is_available()\n"
    "def b():\n    return a() and x\nif b():\n    {c}",
    "availability by name": "if is_available_on('cuda'):\n    {c}",
    "skip marker": "import pytest\n@pytest.mark.skipif(not torch.cuda.is_available(), reason='')\n"
    "def test_x():\n    {c}",
    "skip unless": "import unittest\n@unittest.skipUnless(torch.cuda.is_available(), '')\n"
    "def test_x():\n    {c}",
    "named marker": "needs = pytest.mark.skipif(not torch.cuda.is_available(), reason='')\n"
    "@needs\ndef test_x():\n    {c}",
    "require decorator": "@require_torch_gpu\ndef test_x():\n    {c}",
    "skip if none": "@skip_if_no_gpu\ndef test_x():\n    {c}",
    "decorator's text": "@on_device('cuda')\ndef kernel():\n    {c}",
    "module marker": "pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='')\n"
    "def test_x():\n    {c}",
    "class marker": "@require_cuda\nclass T:\n    def test_x(self):\n        {c}",
    "set up": "class T(Base):\n    def setUp(self):\n        if not torch.cuda.is_available():\n"
    "            self.skipTest('no')\n    def test_x(self):\n        {c}",
    "function's name": "def _sync_cuda():\n    {c}",
    "class's name": "class CudaRunner:\n    def run(self):\n        {c}",
    "base class": "class R(CUDABackend):\n    def run(self):\n        {c}",
    "attribute": "class A:\n    def __init__(self):\n        self.ok = torch.cuda.is_available()\n"
    "    def f(self):\n        if self.ok:\n            {c}",
    "hasattr": "if hasattr(torch, 'cuda'):\n    {c}",
}


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS.keys())
def test_guarded_call_is_not_an_unguarded_one(guard: str) -> None:
    code = "import torch\n" + guard.replace("{c}", SYNC)
    assert "DEV102" not in codes(code)


@pytest.mark.parametrize(
    "code",
    [
        "def test_a(m):\n    with patch('torch.Tensor.to'):\n        m.to('cuda')",
        "@patch('torch.Tensor.cuda')\ndef test_a(mock, m):\n    m.cuda()",
        "def test_a(monkeypatch, m):\n    monkeypatch.setattr(torch.Tensor, 'to', print)\n    m.to('cuda')",
        "def test_a(m):\n    with patch.object(m, 'cuda'):\n        m.cuda()",
    ],
)
def test_what_a_test_replaces_places_nothing(code: str) -> None:
    assert codes("import torch\nfrom unittest.mock import patch\n" + code, "tests/test_a.py") == []


def test_a_choice_in_a_tuple_has_the_name_of_its_helper() -> None:
    code = "def pick():\n    return torch.device('cuda' if torch.cuda.is_available() else 'cpu'), 1"
    (finding,) = scan("import torch\n" + code)
    assert finding.message.startswith("the device that pick() returns is chosen between CUDA")


def test_what_falls_to_the_cpu_is_not_said_to_be_taken_for_cuda() -> None:
    one = "def f(device):\n    d = 'cuda' if 'cuda' in device else 'cpu'\n    return x.to(d)"
    other = "def f(device):\n    d = 'cpu' if 'cpu' in device else 'cuda'\n    return x.to(d)"
    assert "what is not cuda is taken for the CPU" in scan(one)[0].message
    assert "what is not the CPU is taken for cuda" in scan(other)[0].message


def test_a_process_group_is_reported_once() -> None:
    head = "import torch.distributed as dist\n"
    for code in (
        "backend = 'nccl'\ndist.init_process_group(backend=backend)",
        "def f(backend='nccl'):\n    dist.init_process_group(backend)",
        "dist.init_process_group('nccl')",
    ):
        assert codes(head + code) == ["DEV111"]


def test_an_mps_call_after_cuda_was_served_is_a_note() -> None:
    code = "import torch\ndef f():\n    if torch.cuda.is_available():\n        return\n    torch.mps.synchronize()"
    assert [f.severity for f in scan(code)] == [Severity.NOTE]


OPEN = {
    "plain": SYNC,
    "wrong branch": f"if torch.cuda.is_available():\n    pass\nelse:\n    {SYNC}",
    "unrelated test": f"if ready:\n    {SYNC}",
    "or": f"if x or torch.cuda.is_available():\n    {SYNC}",
    "after the branch": f"if torch.cuda.is_available():\n    pass\n{SYNC}",
    "return only when there": f"def f():\n    if torch.cuda.is_available():\n        return\n    {SYNC}",
    "not the cpu": f"if device != 'cpu':\n    {SYNC}",
    "another backend": f"if torch.backends.mps.is_available():\n    {SYNC}",
    "raised again": f"try:\n    {SYNC}\nexcept RuntimeError:\n    raise",
    "other exception": f"try:\n    {SYNC}\nexcept KeyError:\n    pass",
    "handler": f"try:\n    f()\nexcept RuntimeError:\n    {SYNC}",
    "negative flag": f"if args.no_cuda:\n    {SYNC}",
    "skip marker the wrong way": "import pytest\n@pytest.mark.skipif(torch.cuda.is_available(), "
    f"reason='')\ndef test_x():\n    {SYNC}",
    "gpu says nothing in a name": f"def free_gpu():\n    {SYNC}",
    "function in a guarded file": f"if torch.cuda.is_available():\n    pass\ndef f():\n    {SYNC}",
}


@pytest.mark.parametrize("code", OPEN.values(), ids=OPEN.keys())
def test_unguarded_call_is_reported(code: str) -> None:
    assert "DEV102" in codes("import torch\n" + code)


NAMES = {
    "import as": "import torch as t\nt.cuda.synchronize()",
    "from import": "from torch import cuda\ncuda.synchronize()",
    "from import as": "from torch import cuda as c\nc.synchronize()",
    "submodule as": "import torch.cuda as c\nc.synchronize()",
    "function": "from torch.cuda import synchronize\nsynchronize()",
    "function as": "from torch.cuda import synchronize as s\ns()",
    "assigned module": "import torch\nc = torch.cuda\nc.synchronize()",
    "assigned function": "import torch\ns = torch.cuda.synchronize\ns()",
    "getattr": "import torch\ngetattr(torch, 'cuda').synchronize()",
    "in a function": "def f():\n    from torch import cuda as c\n    c.synchronize()",
    "module name used far away": "import torch\nc = torch.cuda\n"
    + "def g():\n    return 1\n" * 80
    + "def f():\n    c.synchronize()\n",
}


@pytest.mark.parametrize("code", NAMES.values(), ids=NAMES.keys())
def test_names_are_resolved(code: str) -> None:
    assert codes(code) == ["DEV102"]


def test_a_name_of_its_own_is_not_torch() -> None:
    assert codes("import mylib as torch\ntorch.cuda.synchronize()") == []
    assert codes("def f(cuda):\n    cuda.synchronize()") == []


LITERALS = {
    "f-string": "def f(x, i):\n    return x.to(f'cuda:{i}')",
    "concatenation": "def f(x, i):\n    return x.to('cuda:' + str(i))",
    "percent": "def f(x, i):\n    return x.to('cuda:%d' % i)",
    "format": "def f(x, i):\n    return x.to('cuda:{}'.format(i))",
    "str of device": "import torch\ndef f(x):\n    return x.to(str(torch.device('cuda')))",
    "type keyword": "import torch\ndef f(x):\n    return x.to(torch.device(type='cuda', index=1))",
    "chain of names": "a = 'cuda'\nb = a\ndef f(x):\n    return x.to(b)",
    "tuple assignment": "def f(x):\n    device, n = 'cuda', 1\n    return x.to(device)",
    "class attribute": "class A:\n    def __init__(self):\n        self.where = 'cuda'\n"
    "    def f(self, x):\n        return x.to(self.where)",
    "item": "def f(options):\n    options['device'] = 'cuda'",
    "attribute of another": "def f(args):\n    args.device = 'cuda'",
    "dictionary": "options = {'device': 'cuda'}",
    "device map": "def f(load):\n    return load('x', device_map={'': 'cuda:0'})",
    "returned": "def get_device():\n    return 'cuda'",
    "list": "import torch\nplaces = [torch.device('cuda', i) for i in range(2)]",
}


@pytest.mark.parametrize("code", LITERALS.values(), ids=LITERALS.keys())
def test_literals_are_followed_to_where_they_are_used(code: str) -> None:
    assert codes(code) == ["DEV101"]


QUIET = {
    "docstring": "def f():\n    '''x.to('cuda') and torch.cuda.synchronize()'''",
    "comment": "x = 1  # x.cuda()",
    "log": "import logging\nlogging.info('moving to %s', 'cuda')",
    "help": "parser.add_argument('--device', help='cuda')",
    "comparison": "ok = device == 'cuda'",
    "unused text": "name = 'cuda'\nprint(name)",
    "selection for show": "import torch\nprint('cuda' if torch.cuda.is_available() else 'cpu')",
    "metadata": "DecorateInfo(device_type='cuda')",
    "registration": "register('op', device='cuda')",
    "expected value": "assert_device(x, device='cuda')",
}


@pytest.mark.parametrize("code", QUIET.values(), ids=QUIET.keys())
def test_text_about_devices_is_not_code(code: str) -> None:
    assert codes(code) == []


def test_the_path_declares_a_backend_and_only_its_own_parts_do() -> None:
    code = "import torch\ntorch.cuda.synchronize()"
    assert codes(code, "kernels/cuda/stream.py") == []
    assert codes(code, "pkg/cuda_graphs.py") == []
    assert codes(code, "pkg/gpu_config.py") == ["DEV102"]
    assert codes("import torch\ntorch.mps.synchronize()", "pkg/mps.py") == []


def test_a_guarded_branch_is_a_milder_finding() -> None:
    code = "import torch\nif torch.cuda.is_available():\n    torch.cuda.empty_cache()"
    (finding,) = scan(code)
    assert (finding.code, finding.severity) == ("DEV115", Severity.NOTE)


@pytest.mark.parametrize(
    ("code", "severity"),
    [
        # Every accelerator was asked for: it fails only where there is none.
        (
            "import torch\ndef f(kind=None):\n    found = torch.accelerator.current_accelerator()\n"
            "    device_type = kind or (found.type if found is not None else 'cuda')\n"
            "    return torch.get_device_module(device_type)",
            Severity.WARNING,
        ),
        (
            "import torch\ndef f(kind=None):\n    return torch.device(kind or 'cuda')",
            Severity.ERROR,
        ),
        # Without the package nobody may ever import a module; an `__init__` everybody does.
        ("import cupy", Severity.WARNING),
        # A wrong answer does not fail.
        ("def same(a, b):\n    return a.is_cuda == b.is_cuda", Severity.WARNING),
        ("def f(x, device):\n    return x.cuda() if device != 'cpu' else x", Severity.ERROR),
        # A tool for CUDA's allocator.
        ("import torch\ntorch.cuda.memory._dump_snapshot('x')", Severity.WARNING),
        ("import torch\ntorch.cuda.synchronize()", Severity.ERROR),
    ],
)
def test_what_does_not_fail_in_ordinary_use_is_a_warning(code: str, severity: Severity) -> None:
    (finding,) = scan(code)
    assert finding.severity == severity


def test_an_import_in_an_init_is_an_error() -> None:
    (finding,) = scan("import cupy", "pkg/__init__.py")
    assert finding.severity == Severity.ERROR


def test_rules_see_each_place_once() -> None:
    code = "import torch\ndef f(x):\n    return x.to(torch.device('cuda:0'))"
    (finding,) = scan(code)
    assert (finding.line, finding.column, finding.scope) == (3, 17, "f")


def test_a_backends_own_package_declares_it() -> None:
    code = "import torch\nimport torch_npu\ntorch.npu.synchronize()"
    assert codes(code) == []
    assert codes("import torch\nfrom conformance import simulate\ntorch.mps.synchronize()") == []
    assert codes(code.replace("import torch_npu\n", "")) == ["DEV102"]


def test_tests_may_name_rarer_backends_and_engines_but_not_cuda() -> None:
    for path in ("tests/test_x.py", "pkg/conftest.py", "tests/data.py"):
        assert codes("def test_a(x):\n    x.to('mps')", path) == []
        assert codes("def test_a(f):\n    f(backend='vllm')", path) == []
        assert codes("def test_a(x):\n    x.to('cuda')", path) == ["DEV101"]


@pytest.mark.parametrize("path", ["pkg/core/decode_test.py", "pkg/core/decode_test_helpers.py"])
def test_a_test_may_hand_a_name_to_what_it_tests(path: str) -> None:
    handed = "from pkg.host import Host\nhost = Host(device='cuda')\nhost.device = 'cuda'\n"
    handed += "class Stub:\n    def __init__(self):\n        self.device = 'cuda'\n"
    handed += "    def to(self, x):\n        return x.to(self.device)\n"
    placed = "import torch\na = torch.ones(3, device='cuda')\n"
    for name, code, labels in ((path, handed, ["note"] * 3), (path, placed, ["error"]),
                               ("pkg/core/decode.py", handed, ["error"] * 3)):  # fmt: skip
        found = analyse(name, code.encode(), RULES)
        assert [finding.severity.label for finding in found] == labels, (name, found)
