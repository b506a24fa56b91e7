"""Findings that other files of the project decide: callers, flags, constants, parameters."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import pytest

from conformance.scan.cli import main
from conformance.scan.config import Config
from conformance.scan.findings import Severity
from conformance.scan.reading.discover import discover
from conformance.scan.runner import scan

SYNC = "import torch\ndef sync():\n    torch.cuda.synchronize()\n"
GUARDED = "from pkg.ops import sync\ndef run(x):\n    if x.is_cuda:\n        sync()\n"
BARE = "import torch\nfrom pkg.ops import sync\ndef run(x):\n    sync()\n    return torch.cuda.is_available()\n"


def judged(root: Path, files: dict[str, str], *parts: str, **settings: object) -> list[str]:
    """Every finding as ``file:line CODE severity``, after writing the files as a project."""
    (root / "pyproject.toml").touch()
    for name, text in {"pkg/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    config = Config(root, severity=Severity.NOTE, **{"cache": False, **settings}).checked()
    found = scan(discover([str(root / part) for part in parts or ("",)], config), config).findings
    return [f"{Path(f.path).relative_to(root)}:{f.line} {f.code} {f.severity.label}" for f in found]


LOAD = "import torch\ndef read(path):\n    return torch.load(path)\n"


@pytest.mark.parametrize(
    ("save", "severity"),
    [
        ("torch.save(x.cpu(), path)", "note"),
        ("y = {'a': x.detach().to('cpu')}\n    torch.save(y, path)", "note"),
        ("y = []\n    y.append(x.cpu())\n    torch.save(y, path)", "note"),
        ("torch.save(x.state_dict(), path)", "warning"),
        ("torch.save(x, path)", "warning"),
        ("torch.save({'a': x.cpu(), 'b': x.state_dict()}, path)", "warning"),
        ("print(z.cpu())\n    torch.save(x.state_dict(), path)", "warning"),
    ],
)
def test_what_the_project_saves_from_the_host_is_loaded_anywhere(
    tmp_path: Path, save: str, severity: str
) -> None:
    files = {"pkg/a.py": LOAD, "pkg/b.py": f"import torch\ndef keep(x, z, path):\n    {save}\n"}
    assert judged(tmp_path, files) == [f"pkg/a.py:3 DEV114 {severity}"]


def test_the_key_that_is_read_says_which_file_is_meant(tmp_path: Path) -> None:
    train = "import torch\ndef keep(x, path):\n    torch.save({'model': x.state_dict()}, path)\n"
    factor = "import torch\ndef keep(x, path):\n    torch.save({'factor': x.cpu()}, path)\n"
    files = {"pkg/a.py": LOAD, "pkg/b.py": train, "pkg/c.py": factor}
    assert judged(tmp_path, files) == ["pkg/a.py:3 DEV114 warning"]
    files["pkg/a.py"] = "import torch\ndef read(path):\n    return torch.load(path)['factor']\n"
    assert judged(tmp_path, files) == ["pkg/a.py:3 DEV114 note"]


@pytest.mark.parametrize(
    ("files", "severity"),
    [
        ({"pkg/a.py": GUARDED}, "note"),
        ({"pkg/a.py": BARE}, "error"),
        ({"pkg/a.py": GUARDED, "pkg/b.py": BARE}, "error"),
        ({"pkg/a.py": "x = 1\n"}, "error"),  # nobody calls it: who knows
        # under another name, and through a package that hands it on
        ({"pkg/a.py": GUARDED.replace("import sync", "import sync as s").replace(" sync()", " s()")}, "note"),
        ({"pkg/a.py": "from pkg import ops\ndef run(x):\n    if x.is_cuda:\n        ops.sync()\n"}, "note"),
        ({"pkg/__init__.py": "from .ops import sync\n", "pkg/a.py": GUARDED.replace("pkg.ops", "pkg")}, "note"),
        ({"pkg/__init__.py": "from .ops import *\n", "b.py": "from pkg import sync\nsync()\n"}, "error"),
        ({"pkg/a.py": "import pkg.ops\ndef run(x):\n    if x.is_cuda:\n        pkg.ops.sync()\n"}, "note"),
        # handed on, or called from a test alone
        ({"pkg/a.py": GUARDED + "    return [sync]\n"}, "error"),
        ({"tests/test_a.py": GUARDED}, "error"),
        ({"pkg/a.py": GUARDED, "tests/test_a.py": BARE}, "error"),
        # a caller that is only called where CUDA is known
        ({"pkg/a.py": BARE, "pkg/b.py": "from pkg.a import run\ndef go(x):\n    if x.is_cuda:\n        run(x)\n"}, "note"),
        ({"pkg/a.py": BARE, "pkg/b.py": "from pkg.a import run\nrun(3)\n"}, "error"),
        # the flag that guards the call is another module's
        (
            {
                "pkg/env.py": "import torch\nFAST = torch.cuda.is_available()\n",
                "pkg/a.py": "import torch\nfrom pkg.env import FAST\nfrom pkg.ops import sync\nif FAST:\n"
                "    sync()\n    torch.cuda.is_available()\n",
            },
            "note",
        ),
    ],
)  # fmt: skip
def test_a_helper_is_as_safe_as_its_callers_in_other_files(
    tmp_path: Path, files: dict[str, str], severity: str
) -> None:
    assert f"pkg/ops.py:3 DEV102 {severity}" in judged(tmp_path, {"pkg/ops.py": SYNC, **files})


def test_a_private_helper_that_another_file_calls_unguarded_is_an_error(tmp_path: Path) -> None:
    own = "import torch\ndef _sync():\n    torch.cuda.synchronize()\ndef f(x):\n    if x.is_cuda:\n        _sync()\n"
    assert judged(tmp_path, {"pkg/ops.py": own}) == ["pkg/ops.py:3 DEV102 note"]
    other = {"pkg/ops.py": own, "pkg/a.py": BARE.replace("sync", "_sync")}
    assert judged(tmp_path, other) == ["pkg/ops.py:3 DEV102 error"]


@pytest.mark.parametrize(
    ("flag", "imported", "test"),
    [
        ("FAST = torch.cuda.is_available()", "from .env import FAST", "FAST"),
        ("FAST = torch.cuda.is_available()", "from .env import FAST as quick", "quick"),
        ("FAST = torch.cuda.is_available()", "from . import env", "env.FAST"),
        ("FAST = torch.cuda.is_available()", "from .env import *", "FAST"),
        ("FAST = False\nif torch.cuda.is_available():\n    FAST = True", "from .env import FAST", "FAST"),
        ("def fast():\n    return torch.cuda.is_available()", "from .env import fast", "fast()"),
        ("from torch import cuda\ndef _ask():\n    return cuda.is_available()\nFAST = _ask()", "from .env import FAST", "FAST"),
    ],
)  # fmt: skip
def test_flags_of_other_modules_are_read(
    tmp_path: Path, flag: str, imported: str, test: str
) -> None:
    env = f"import torch\n{flag}\n"
    use = f"import torch\n{imported}\nif {test}:\n    torch.cuda.set_device(0)\n"
    assert judged(tmp_path, {"pkg/env.py": env, "pkg/a.py": use}) in (
        [],
        ["pkg/a.py:4 DEV115 note"],
    )
    other = env.replace("torch.cuda.is_available", "other").replace("cuda.is_available", "other")
    assert "pkg/a.py:4 DEV102 error" in judged(tmp_path, {"pkg/env.py": other, "pkg/a.py": use})


def test_what_is_imported_for_one_backend_only_is_for_it(tmp_path: Path) -> None:
    files = {
        "pkg/a.py": "import torch\nif torch.cuda.is_available():\n    from .fast import go\n",
        "pkg/fast/__init__.py": "from .ops import sync as go\n",
        "pkg/fast/ops.py": SYNC,
    }
    assert judged(tmp_path, files) == []
    files["pkg/b.py"] = "from .fast.ops import sync\n"
    assert judged(tmp_path, files) == ["pkg/fast/ops.py:3 DEV102 error"]
    files["pkg/b.py"] = "import typing\nif typing.TYPE_CHECKING:\n    from .fast.ops import sync\n"
    files["tests/test_b.py"] = "from pkg.fast.ops import sync\n"
    assert judged(tmp_path, files) == []


GENERATE = "def generate(model, where, *, steps=3):\n    return model.to(where)\n"


@pytest.mark.parametrize(
    ("function", "call", "reported"),
    [
        (GENERATE, "generate(3, 'cuda')", True),
        (GENERATE, "generate(3, where='cuda')", True),
        (GENERATE, "cuda_device = 'cuda'; generate(3, cuda_device)", True),
        (GENERATE, "generate('cuda', 3)", False),
        (GENERATE.replace("where", "device"), "generate(3, 'cuda:1')", True),
        (GENERATE.replace(".to(where)", ""), "generate(3, 'cuda')", False),
        ("class generate:\n    def __init__(self, model, where):\n        model.to(where)\n", "generate(3, 'cuda')", True),
        ("from dataclasses import dataclass\n@dataclass\nclass generate:\n    steps: int\n    device: str\n    def put(self, x):\n        return x.to(self.device)\n", "generate(3, 'cuda')", True),
        ("from dataclasses import dataclass\n@dataclass\nclass generate:\n    steps: int\n    device: str\n", "generate(3, 'cuda')", False),
        ("import torch\ndef generate(model, device):\n    if not torch.cuda.is_available():\n        device = 'cpu'\n", "generate(3, 'cuda')", False),
    ],
)  # fmt: skip
def test_a_device_given_to_a_function_is_reported_where_it_is_written(
    tmp_path: Path, function: str, call: str, reported: bool
) -> None:
    expected = ["pkg/a.py:2 DEV101 error"] if reported else []
    files = {"pkg/gen.py": function, "pkg/a.py": f"from .gen import generate\n{call}\n"}
    assert [line for line in judged(tmp_path, files) if "pkg/a" in line] == expected
    same = {"pkg/gen.py": "", "pkg/a.py": f"{function}\n\n{call}\n"}
    assert len([line for line in judged(tmp_path, same) if "DEV101" in line]) == len(expected)


def test_a_constant_is_reported_where_it_is_written(tmp_path: Path) -> None:
    files = {
        "pkg/const.py": "KIND = 'cuda'\n",
        "pkg/a.py": "from .const import KIND\nprint(KIND)\n",
    }
    assert judged(tmp_path, files) == []
    files["pkg/b.py"] = "from . import const\ndef f(x):\n    return x.to(const.KIND)\n"
    assert judged(tmp_path, files) == ["pkg/const.py:1 DEV101 error"]


@pytest.mark.parametrize(
    ("call", "severity"),
    [
        ("make(3, 'cpu')", "warning"),
        ("make(3, device=d)", "warning"),
        ("make(3)", "error"),
        ("make(*rest)", "error"),
        ("print(make)", "error"),
        ("print(3)", "error"),
    ],
)
def test_a_default_that_every_call_overrides_is_a_warning(
    tmp_path: Path, call: str, severity: str
) -> None:
    files = {
        "pkg/ops.py": "def make(n, device='cuda'):\n    return n, device\n",
        "pkg/a.py": f"from .ops import make\ndef f(d, rest):\n    {call}\n",
    }
    assert judged(tmp_path, files) == [f"pkg/ops.py:1 DEV103 {severity}"]
    field = "from dataclasses import dataclass\n@dataclass\nclass make:\n    n: int\n    device: str = 'cuda'\n"
    found = judged(tmp_path, {**files, "pkg/ops.py": field})
    assert found == [f"pkg/ops.py:5 DEV103 {severity}"]


RUNNER = "import torch\nclass Runner{}:\n    def prefetch(self, x, device='cpu'):\n        torch.cuda.synchronize()\n"
KNOWN = "from .ops import Runner\ndef run(x):\n    r = Runner()\n    if x.is_cuda:\n        r.prefetch(x)\n"


@pytest.mark.parametrize(
    ("bases", "others", "severity"),
    [
        ("", {}, "note"),
        ("(torch.nn.Module)", {}, "note"),
        # a class of somebody else's may call its methods by itself
        ("(Dataset)", {}, "error"),
        # called, or only spoken of, where nothing is known of the class
        ("", {"b.py": "def go(r):\n    r.prefetch(2)\n"}, "error"),
        ("", {"b.py": "def go(r, cuda):\n    return [r.prefetch]\n"}, "error"),
        ("", {"pkg/a.py": KNOWN.replace("if x.is_cuda", "if x")}, "error"),
        ("", {"pkg/a.py": "x = 1\n"}, "error"),
    ],
)
def test_callers_of_a_method_are_found_by_its_name(
    tmp_path: Path, bases: str, others: dict[str, str], severity: str
) -> None:
    files = {"pkg/ops.py": RUNNER.format(bases), "pkg/a.py": KNOWN, **others}
    assert judged(tmp_path, files) == [f"pkg/ops.py:4 DEV102 {severity}"]


@pytest.mark.parametrize(("given", "severity"), [("3, 'cpu'", "warning"), ("3", "error")])
def test_a_default_of_a_method_that_every_call_overrides(
    tmp_path: Path, given: str, severity: str
) -> None:
    files = {
        "pkg/ops.py": "class Maker:\n    def make_it(self, n, device='cuda'):\n        return n, device\n",
        "pkg/a.py": f"from .ops import Maker\nm = Maker()\nm.make_it({given})\n",
    }
    assert judged(tmp_path, files) == [f"pkg/ops.py:2 DEV103 {severity}"]


@pytest.mark.parametrize(
    ("files", "reported"),
    [
        # through a method, and through a function that hands it on
        ({"pkg/gen.py": "class M:\n    def load(self, path, where):\n        read(path).to(where)\n", "pkg/a.py": "from .gen import M\nm = M()\nm.load('x', 'cuda')\n"}, "pkg/a.py:3 DEV101 error"),
        ({"pkg/low.py": "def low(x, where):\n    return x.to(where)\n", "pkg/gen.py": "from .low import low\ndef gen(x, kind):\n    return low(x, kind)\n", "pkg/a.py": "from .gen import gen\n\ngen(1, 'cuda')\n"}, "pkg/a.py:3 DEV101 error"),
        # kept in an object, under a name that does not say so
        ({"pkg/gen.py": "def gen(cfg):\n    model.to(cfg.where)\n", "pkg/a.py": "from .gen import gen\n\ngen(Config(where='cuda'))\n"}, "pkg/a.py:3 DEV101 warning"),
        ({"pkg/gen.py": "def gen(cfg):\n    model.to(cfg['where'])\n", "pkg/a.py": "from .gen import gen\ncfg.where = 'cuda'\ngen(cfg)\n"}, "pkg/a.py:2 DEV101 warning"),
        ({"pkg/gen.py": "def gen(cfg):\n    print(cfg.where)\n", "pkg/a.py": "from .gen import gen\ncfg.where = 'cuda'\ngen(cfg)\n"}, ""),
    ],
)  # fmt: skip
def test_a_device_is_followed_through_objects_and_calls(
    tmp_path: Path, files: dict[str, str], reported: str
) -> None:
    assert judged(tmp_path, files) == [reported] * bool(reported)
    assert judged(tmp_path, files, "pkg/a.py") == [reported] * bool(reported)


def test_fixes_know_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the callers guard is left alone; what another file places is mended."""
    files = {
        "pkg/ops.py": SYNC,
        "pkg/a.py": GUARDED,
        "pkg/gen.py": GENERATE,
        "pkg/c.py": "import torch\nfrom .gen import generate\ngenerate(3, 'cuda')\n",
    }
    assert judged(tmp_path, files) == ["pkg/c.py:3 DEV101 error", "pkg/ops.py:3 DEV102 note"]
    monkeypatch.chdir(tmp_path)
    assert main(["--unsafe-fixes", "."]) == 0
    assert (tmp_path / "pkg/ops.py").read_text() == SYNC
    assert "accelerator" in (tmp_path / "pkg/c.py").read_text()
    assert capsys.readouterr().err == "0 findings in 6 files, 1 mended\n"


REFUSING = "import sys\nimport torch\ndef start(args):\n    if args.rank:\n        pass\n    elif {}:\n        args.gpu = 0\n    else:\n        sys.exit(1)\n"


@pytest.mark.parametrize(
    ("test", "left"),
    [
        ("torch.cuda.is_available()", ["pkg/a.py:9 DEV101 error", "pkg/a.py:7 DEV102 note"]),
        ("args.slurm", ["pkg/a.py:4 DEV101 error", "pkg/a.py:7 DEV102 error", "pkg/a.py:9 DEV101 error"]),
    ],
)  # fmt: skip
def test_who_calls_a_function_that_refuses_has_cuda(
    tmp_path: Path, test: str, left: list[str]
) -> None:
    main_ = (
        "import torch\nfrom . import env\ndef main(m, args):\n    env.start(args); m.cuda()\n"
        "    train(m)\ndef train(m):\n    torch.cuda.synchronize()\ndef other(m):\n    m.cuda()\n"
    )
    files = {"pkg/env.py": REFUSING.format(test), "pkg/a.py": main_}
    assert sorted(judged(tmp_path, files)) == sorted(left)


def test_a_folder_that_builds_an_extension_is_for_cuda(tmp_path: Path) -> None:
    files = {
        "ext/setup.py": "setup(CUDAExtension('x'))\n",
        "ext/test_it.py": SYNC,
        "pkg/ops.py": SYNC,
    }
    found = judged(tmp_path, files)
    assert found == ["ext/test_it.py:3 DEV102 note", "pkg/ops.py:3 DEV102 error"]


def test_a_cold_file_that_imports_the_module_for_something_else(tmp_path: Path) -> None:
    files = {
        "pkg/ops.py": SYNC + "def run(x):\n    if x.is_cuda:\n        sync()\n",
        "pkg/a.py": "from . import ops\nops.run(3)\n",
    }
    assert judged(tmp_path, files) == ["pkg/ops.py:3 DEV102 note"]
    files["pkg/a.py"] = "from . import ops\nops.sync()\n"
    assert judged(tmp_path, files) == ["pkg/ops.py:3 DEV102 error"]


TREE = {
    "pkg/ops.py": SYNC,
    "pkg/a.py": GUARDED,
    "pkg/env.py": "import torch\nFAST = torch.cuda.is_available()\nKIND = 'cuda'\n",
    "pkg/b.py": "import torch\nfrom .env import FAST, KIND\nif FAST:\n    torch.cuda.set_device(0)\nx.to(KIND)\n",
    "pkg/c.py": "from .gen import generate\ngenerate(3, 'cuda')\n",
    "pkg/gen.py": GENERATE,
}


def test_order_processes_cache_and_the_part_asked_for_change_nothing(tmp_path: Path) -> None:
    expected = judged(tmp_path, TREE)
    assert len(expected) == 4
    config = Config(tmp_path, severity=Severity.NOTE, cache=False, jobs=1).checked()
    targets = discover([str(tmp_path)], config)
    first = scan(targets, config).findings
    random.Random(3).shuffle(targets)
    assert scan(targets, config).findings == first
    for _ in range(2):
        assert judged(tmp_path, TREE, cache=True) == expected  # cold, then warm
    for settings in ({"cache": True}, {"cache": False}):
        alone = [line for name in TREE for line in judged(tmp_path, TREE, name, **settings)]
        assert sorted(alone) == sorted(expected)


def test_a_change_in_one_file_changes_what_is_said_of_another(tmp_path: Path) -> None:
    assert "pkg/ops.py:3 DEV102 note" in judged(tmp_path, TREE, cache=True)
    changed = {**TREE, "pkg/a.py": BARE}
    for part in ("", "pkg/ops.py"):
        assert "pkg/ops.py:3 DEV102 error" in judged(tmp_path, changed, part, cache=True)
    assert "pkg/ops.py:3 DEV102 note" in judged(tmp_path, TREE, cache=True)


def test_one_file_without_summaries_of_the_rest_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(tmp_path, TREE)
    monkeypatch.chdir(tmp_path)
    said = "conformance scan: nothing known of the rest of the project: read its 6 other files\n"
    assert main(["pkg/ops.py"]) == 0
    assert capsys.readouterr().err.startswith(said)
    assert main(["pkg/ops.py"]) == 0
    assert said not in capsys.readouterr().err
    assert main(["--quiet", "--no-cache", "pkg/ops.py"]) == 0
    assert said in capsys.readouterr().err


def test_standard_input_is_judged_with_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(tmp_path, TREE)
    monkeypatch.chdir(tmp_path)
    text = "# not saved yet\n" + TREE["pkg/ops.py"]

    def typed(name: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        main(["-", "--stdin-filename", name, "--severity", "note", "--output-format", "json"])
        return [f"{f['line']} {f['severity']}" for f in json.loads(capsys.readouterr().out)]

    assert typed("pkg/ops.py") == typed("pkg/ops.py") == ["4 note"]  # without a cache, then with it
    assert typed("pkg/new.py") == ["4 error"]  # nobody calls what is not there yet
    assert "pkg/ops.py:3 DEV102 note" in judged(tmp_path, TREE, cache=True)


def test_a_copy_in_another_folder_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    loads = "import torch\nstate = torch.load('x.pt')\n"
    tree = {"pyproject.toml": "", "tests/it.py": loads, "it.py": loads}
    expected = ["it.py:2 DEV114 warning", "tests/it.py:2 DEV114 note"]
    for cache in (False, True, True):
        assert sorted(judged(tmp_path, tree, cache=cache)) == expected


@pytest.mark.parametrize(
    ("use", "severity"),
    [
        # made by what is in the table, with arguments that are not seen
        ("TABLE = {'a': Model}\ndef make(name, device):\n    return TABLE[name](device=device)\n", "warning"),
        ("made: object = field(default_factory=Model)\n", "error"),
        ("made = Model()\nTABLE = {'a': Model}\n", "error"),
    ],
)  # fmt: skip
def test_the_default_of_a_class_that_is_handed_on(tmp_path: Path, use: str, severity: str) -> None:
    model = "class Model:\n    def __init__(self, device='cuda'):\n        self.device = device\n"
    files = {"pkg/model.py": model, "pkg/a.py": "from .model import Model\n" + use}
    assert judged(tmp_path, files) == [f"pkg/model.py:2 DEV103 {severity}"]


def test_a_package_copied_in_that_builds_extensions_for_cuda(tmp_path: Path) -> None:
    bad = "import torch\ndef run(x):\n    return x.cuda()\n"
    files = {
        "apex/setup.py": "CppExtension('a')\nCUDAExtension('b')\nCUDAExtension('c')\n",
        "apex/examples/net/main.py": bad,
        "main.py": bad,
        "other/setup.py": "CppExtension('a')\nCUDAExtension('b')\n",
        "other/main.py": bad,
    }
    assert [line for line in judged(tmp_path, files) if "DEV101" in line] == [
        "apex/examples/net/main.py:3 DEV101 note",
        "main.py:3 DEV101 error",
        "other/main.py:3 DEV101 error",
    ]
