"""What cannot be imported without CUDA, and the files behind such an import."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.scan.knowing.reach import builds_for_cuda
from tests.conformance.scan.joining.test_scan_project import judged

SETUP = "from torch.utils.cpp_extension import CUDAExtension\nmake(ext_modules=[CUDAExtension(\n    name='{}', sources=[])])\n"
OPS = "{}\ndef f(x):\n    return x.cuda()\n"
USER = "from .ops import f\ndef run(x):\n    return f(x.to('cuda'))\n"


@pytest.mark.parametrize(
    ("built", "imported"),
    [
        ("vren", "import vren"),
        ("vren", "from vren import march"),
        ("lib._ext", "import lib._ext as ext"),
        ("lib._ext", "from lib import _ext"),
        ("other", "import quant_cuda"),  # named for CUDA, and nobody's file
    ],
)
def test_an_extension_is_reported_and_what_lies_behind_it_is_milder(
    tmp_path: Path, built: str, imported: str
) -> None:
    files = {
        "kernels/setup.py": SETUP.format(built),
        "pkg/ops.py": OPS.format(imported),
        "pkg/user.py": USER,
        "pkg/test_ops.py": USER,
    }
    assert judged(tmp_path, files) == [
        "pkg/ops.py:1 DEV113 warning",
        "pkg/ops.py:3 DEV101 note",
        "pkg/test_ops.py:3 DEV101 note",
        "pkg/user.py:3 DEV101 warning",
    ]


@pytest.mark.parametrize(
    "imported",
    [
        "try:\n    import vren\nexcept ImportError:\n    vren = None",
        "def late():\n    import vren",
        '"""How to use it:\n\nimport vren\n"""',
        "import quant_cuda",  # a file of the project
        "import vrenderer",
    ],
)
def test_what_is_imported_elsewhere_or_not_for_certain_changes_nothing(
    tmp_path: Path, imported: str
) -> None:
    files = {
        "kernels/setup.py": SETUP.format("vren"),
        "quant_cuda.py": "",
        "pkg/ops.py": OPS.format(imported),
        "pkg/user.py": USER,
    }
    found = judged(tmp_path, files)
    assert [row.split()[1:] for row in found] == [["DEV101", "error"]] * 2


@pytest.mark.parametrize(
    ("imported", "severities"),
    [("pkg.ops", []), ("pkg.other", ["error"])],
)
def test_what_follows_an_import_of_what_is_cut_off(
    tmp_path: Path, imported: str, severities: list[str]
) -> None:
    late = f"def run(x):\n    from {imported} import f\n    return f(x.to('cuda'))\n"
    files = {
        "kernels/setup.py": SETUP.format("vren"),
        "pkg/ops.py": "import vren\ndef f(x):\n    return x\n",
        "pkg/other.py": "def f(x):\n    return x\n",
        "pkg/run.py": late,
    }
    assert [row.split()[-1] for row in judged(tmp_path, files)] == severities


JIT = "from torch.utils.cpp_extension import load\n_ext = load(name='_ext', sources=['a.cu'], extra_cuda_cflags=[])\n"


@pytest.mark.parametrize(
    ("tried", "severity"),
    [
        ("from .jit import _ext", "warning"),
        ("try:\n    import _ext\nexcept ImportError:\n    from .jit import _ext", "warning"),
        ("try:\n    import _ext\nexcept ImportError:\n    from torch.utils.cpp_extension import load\n    _ext = load('a')", "warning"),
        ("try:\n    import _ext\nexcept ImportError:\n    _ext = None", "error"),
        ("try:\n    import other\nexcept ImportError:\n    from .jit import _ext", "error"),
    ],
)  # fmt: skip
def test_an_extension_that_is_compiled_as_it_is_imported(
    tmp_path: Path, tried: str, severity: str
) -> None:
    files = {
        "kernels/setup.py": SETUP.format("_ext"),
        "pkg/jit.py": JIT,
        "pkg/ops.py": f"{tried}\ndef f(x):\n    return x.cuda()\n",
        "pkg/user.py": USER,
    }
    assert judged(tmp_path, files)[-1] == f"pkg/user.py:3 DEV101 {severity}"


def test_a_package_for_cuda_alone_cuts_off_whoever_imports_its_user(tmp_path: Path) -> None:
    files = {"pkg/ops.py": "import flash_attn\n", "pkg/user.py": USER}
    assert "pkg/user.py:3 DEV101 warning" in judged(tmp_path, files)
    files["pkg/ops.py"] = "def f(x):\n    import flash_attn\n"
    assert "pkg/user.py:3 DEV101 error" in judged(tmp_path, files)


def test_tests_of_a_module_that_is_named_for_cuda(tmp_path: Path) -> None:
    test = "from pkg.cuda import fast\ndef test_it(x):\n    return fast.f(x.to('cuda'))\n"
    fast = "from . import load\nkernels = load.load()\ndef f(x):\n    return x\n"
    files = {"pkg/cuda/__init__.py": "", "pkg/cuda/fast.py": fast}
    assert judged(tmp_path, {**files, "tests/test_fast.py": test})[-1].endswith("note")
    plain = {**files, "pkg/cuda/fast.py": "def f(x):\n    return x\n"}
    assert judged(tmp_path, {**plain, "tests/test_fast.py": test})[-1].endswith("error")
    assert judged(tmp_path, {**files, "tests/test_fast.py": test.replace(".cuda ", ".slow ")}) == [
        "tests/test_fast.py:3 DEV101 error"
    ]


@pytest.mark.parametrize(
    ("text", "builds"),
    [
        ("CUDAExtension('a', [])", True),
        ("CUDAExtension('a', []) if cuda else CppExtension('a', [])", False),
        ("kind = CppExtension\nif cuda:\n    kind = CUDAExtension\nelse:\n    raise OSError", True),
        ("kind = CppExtension\nif cuda:\n    kind = CUDAExtension", False),
        ("raise OSError", False),
    ],
)
def test_a_set_up_file_for_cuda(text: str, builds: bool) -> None:
    assert builds_for_cuda(text) is builds


def test_a_class_that_a_decorator_hands_on_and_every_call_overrides(tmp_path: Path) -> None:
    made = "@registered\nclass Layer:\n    def __init__(self, n, device='cuda'):\n        self.n = n, device\n"
    files = {"pkg/layers.py": made + "def net(d):\n    return Layer(3, device=d)\n"}
    assert judged(tmp_path, files) == ["pkg/layers.py:3 DEV103 warning"]
    files["pkg/layers.py"] = made + "def net(d):\n    return Layer(3)\n"
    assert judged(tmp_path, files) == ["pkg/layers.py:3 DEV103 error"]


@pytest.mark.parametrize(
    "loaded",
    [
        "from torch.utils.cpp_extension import load\nops = load('ops', ['ops.cpp'])",
        "from torch.utils.cpp_extension import CUDA_HOME\nfrom joblib import load\ndata = load('x')",
    ],
)
def test_what_is_not_compiled_for_cuda_is_no_extension_for_it(tmp_path: Path, loaded: str) -> None:
    files = {"ops.py": OPS.format(f"{loaded}\n")}
    (line,) = judged(tmp_path, files)
    assert line.endswith("DEV101 error")


def test_a_module_of_the_project_is_no_extension(tmp_path: Path) -> None:
    """However Python is told where it lies."""
    files = {"m.py": OPS.format("import cuda_utils"), "lib/cuda_utils.py": "", "lib/b/x.py": ""}
    assert judged(tmp_path, files) == ["m.py:3 DEV101 error"]


def test_a_helper_that_only_several_processes_call(tmp_path: Path) -> None:
    helper = "import torch\ndef pack(x, device='cuda'):\n    torch.cuda.synchronize()\n    return x.to(device)\n"
    gather = "from .pack import pack\ndef gather(x):\n    if get_world_size() == 1:\n        return x\n    return all(pack(x)), 'cuda'\n"
    files = {"pkg/pack.py": helper, "pkg/gather.py": gather}
    assert judged(tmp_path, files) == ["pkg/pack.py:2 DEV103 note", "pkg/pack.py:3 DEV102 note"]
    files["pkg/gather.py"] = gather.replace("world_size", "batch_size")
    found = judged(tmp_path, files)
    assert found == ["pkg/pack.py:2 DEV103 error", "pkg/pack.py:3 DEV102 error"]


def test_guard_clauses_count_in_other_files_as_well(tmp_path: Path) -> None:
    usable = "def usable(x):\n    if x.dtype.is_complex:\n        return False\n    if x.device.type != 'cuda':\n        return False\n    return True\n"
    run = "from .ask import usable\ndef run(x):\n    if usable(x):\n        return x.to('cuda:0')\n    return x\n"
    assert judged(tmp_path, {"pkg/ask.py": usable, "pkg/run.py": run}) == []
    other = usable.replace("return True", "return x.is_floating_point()").replace("'cuda'", "'cpu'")
    assert judged(tmp_path, {"pkg/ask.py": other, "pkg/run.py": run}) != []


def test_a_class_that_is_made_behind_an_assertion(tmp_path: Path) -> None:
    loss = "import torch\nclass Loss(torch.nn.Module):\n    def __init__(self):\n        super(Loss, self).__init__()\n        self.weight = torch.ones(1).cuda()\n"
    train = (
        "import torch\nfrom .loss import Loss\nassert torch.cuda.is_available()\nloss = Loss()\n"
    )
    files = {"pkg/loss.py": loss, "pkg/train.py": train}
    assert judged(tmp_path, files) == ["pkg/loss.py:5 DEV101 note"]
    files["pkg/train.py"] = train.replace("assert ", "print() or ")
    assert judged(tmp_path, files)[0] == "pkg/loss.py:5 DEV101 error"
