"""Private helpers count as guarded where every call of them is."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.scan.config import Config
from conformance.scan.findings import Severity
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES
from conformance.scan.knowing.reach import in_kernel_package
from conformance.scan.reading.discover import discover
from conformance.scan.runner import scan

_HELPER = "import torch\ndef _wait():\n    torch.cuda.synchronize()\n"
_GUARDED = "def run(flag):\n    if torch.cuda.is_available():\n        _wait()\n"


def _severities(code: str, path: str = "module.py") -> list[Severity]:
    return [finding.severity for finding in analyse(path, code.encode(), RULES)]


def test_a_helper_called_only_under_a_guard_is_a_note() -> None:
    assert _severities(_HELPER + _GUARDED) == [Severity.NOTE]


@pytest.mark.parametrize(
    "more",
    [
        "def other():\n    _wait()\n",
        "hooks = [_wait]\n",
        "def other(run):\n    return run(_wait)\n",
        "run_later('_wait')\n",
    ],
)
def test_a_helper_that_may_be_reached_otherwise_is_reported(more: str) -> None:
    assert Severity.ERROR in _severities(_HELPER + _GUARDED + more)


def test_a_helper_nobody_calls_or_a_public_function_is_reported() -> None:
    assert _severities(_HELPER) == [Severity.ERROR]
    public = (_HELPER + _GUARDED).replace("_wait", "wait")
    assert _severities(public) == [Severity.ERROR]


def test_what_all_leaves_out_is_private() -> None:
    public = (_HELPER + _GUARDED).replace("_wait", "wait")
    assert _severities(public + "__all__ = ['run']\n") == [Severity.NOTE]
    other = "from base import wait as _base\n"
    assert _severities(other + public + "__all__ = ['run']\n") == [Severity.NOTE]
    assert _severities(public + "__all__ = ['run', 'wait']\n") == [Severity.ERROR]
    assert _severities(public + "__all__ = names()\n") == [Severity.ERROR]


def test_helpers_of_helpers_and_methods_count_as_well() -> None:
    code = (
        "import torch\nclass A:\n    def _inner(self):\n        torch.cuda.synchronize()\n"
        "    def _outer(self):\n        self._inner()\n        torch.cuda.set_device(0)\n"
        "    def run(self, x):\n        if x.is_cuda:\n            self._outer()\n"
    )
    assert _severities(code) == [Severity.NOTE, Severity.NOTE]


def test_a_call_in_code_that_says_nothing_of_devices_is_found() -> None:
    plain = "def other(data):\n    total = 0\n    for item in data:\n        total += item\n"
    plain += "    print('a line that keeps this definition worth thinning out', total)\n"
    assert _severities(_HELPER + _GUARDED + plain + "    _wait()\n") == [Severity.ERROR]


def test_a_function_inside_a_function_is_private() -> None:
    code = (
        "import torch\ndef f(x, y):\n    def wait():\n        torch.cuda.synchronize()\n"
        "    if x.is_cuda:\n        wait()\n"
    )
    assert _severities(code) == [Severity.NOTE]
    assert _severities(code + "    wait()\n") == [Severity.ERROR]


_TEST = (
    "import torch\nfrom marks import needs_cuda, run\nclass Held:\n    def __init__(self):\n"
    "        self.event = torch.cuda.Event()\n"
    "@needs_cuda\ndef test_a():\n    run(Held, build=Held)\n"
)


def test_in_a_file_of_tests_all_that_is_no_test_is_private() -> None:
    assert _severities(_TEST, "test_a.py") == [Severity.NOTE]
    assert _severities(_TEST, "a_test.py") == [Severity.NOTE]
    assert _severities(_TEST) == [Severity.ERROR]
    assert _severities(_TEST + "def test_b():\n    run(Held)\n", "test_a.py") == [Severity.ERROR]
    assert _severities(_TEST + "held = Held()\n", "test_a.py") == [Severity.ERROR]
    assert _severities(_TEST + "every = [Held]\n", "test_a.py") == [Severity.ERROR]
    for part in ("needs_cuda, ", "@needs_cuda\n"):
        plain = _TEST.replace("@needs_cuda\n", "").replace(part, "")
        assert _severities(plain, "test_a.py") == [Severity.ERROR]


def test_in_a_file_of_tests_what_nothing_runs_is_a_note() -> None:
    off = _HELPER + '"""\ndef test_a():\n    _wait()\n"""\n'
    assert _severities(off, "test_a.py") == [Severity.NOTE]
    assert _severities(off) == [Severity.ERROR]
    fixture = _HELPER.replace("def _wait", "@fixture(autouse=True)\ndef _wait")
    assert _severities(fixture, "test_a.py") == [Severity.ERROR]


def test_a_package_whose_init_loads_kernels_makes_notes(tmp_path: Path) -> None:
    for name, code in {
        "lib/__init__.py": "from .norm import norm\n",
        "lib/norm.py": "import cutlass\ndef norm(x):\n    return x\n",
        "lib/more/__init__.py": "",
        "lib/more/load.py": "def f(x):\n    return x.cuda()\n",
        "lib/plain.py": "def f(x):\n    return x.cuda()\n",
        "other/__init__.py": "from .plain import f\ntry:\n    import cutlass\nexcept ImportError:\n    pass\n",
        "other/plain.py": "def f(x):\n    return x.cuda()\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    config = Config(tmp_path, severity=Severity.NOTE).checked()
    for _ in range(2):  # the second run comes from the cache
        found = scan(discover([str(tmp_path)], config), config).findings
        assert {Path(f.path).relative_to(tmp_path).as_posix(): f.severity for f in found} == {
            "lib/norm.py": Severity.NOTE,
            "lib/more/load.py": Severity.NOTE,
            "lib/plain.py": Severity.NOTE,
            "other/plain.py": Severity.ERROR,
        }
    assert not in_kernel_package(str(tmp_path / "lib" / "norm.py"))


def test_a_function_within_another_that_nothing_calls() -> None:
    """As dead as what is commented out; a class's methods are called by who makes it."""
    outer = "import torch\ndef f(x):\n    def g():\n        return x.cuda()\n    {}\n    return x\n"
    assert _severities(outer.format("pass")) == [Severity.NOTE]
    assert _severities(outer.format("g()")) == [Severity.ERROR]
    assert _severities(outer.format("x.call(g)")) == [Severity.ERROR]
    layer = "import torch\ndef f(x):\n    class G(torch.nn.Module):\n        def forward(self):\n            return x.cuda()\n    return G()\n"
    assert _severities(layer) == [Severity.ERROR]
