"""Fixes: they keep everything else as it was, parse, and are final."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.scan.answering.fixing import apply_edits, fix_source, passes, patch
from conformance.scan.answering.writing import replace_file
from conformance.scan.findings import Edit
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import BY_CODE, RULES
from conformance.scan.proving.fuzz import Tally, check, hidden, inputs, main, program


def fix(code: str, *, unsafe: bool = False) -> str:
    return fix_source("m.py", code.encode(), RULES, unsafe=unsafe).after.decode()


SAFE = {
    "synchronize": (
        "import torch as t\ndef f():\n\tt.cuda.synchronize()\t# wait\n",
        "import torch as t\ndef f():\n\tif t.accelerator.is_available():\n"
        "\t\tt.accelerator.synchronize()\t# wait\n",
    ),
    "choices keep their quotes and comments": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--device', choices=[\n"
        '    "cpu",  # always\n    "cuda",  # fast\n])\n',
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--device', choices=[\n"
        '    "cpu",  # always\n    "cuda", "mps",  # fast\n])\n',
    ),
    "guarded cleaning": (
        "import torch\ndef f():\n    if torch.cuda.is_available():  # free\n"
        "        torch.cuda.synchronize()\n        torch.cuda.empty_cache()\n",
        "import torch\ndef f():\n    if torch.accelerator.is_available():  # free\n"
        "        torch.accelerator.synchronize()\n        torch.accelerator.empty_cache()\n",
    ),
    "seeds": ("import torch\ntorch.cuda.manual_seed(3)\n", "import torch\ntorch.manual_seed(3)\n"),
    "autocast": (
        "import torch\ndef f(a: int, x: torch.Tensor):\n    with torch.autocast( 'cuda' , dtype=a):\n        pass\n",
        "import torch\ndef f(a: int, x: torch.Tensor):\n    with torch.autocast( x.device.type , dtype=a):\n        pass\n",
    ),
    "carriage returns stay": (
        "import torch\r\ntorch.cuda.empty_cache()\r\n",
        "import torch\r\nif torch.accelerator.is_available():\r\n    torch.accelerator.empty_cache()\r\n",
    ),
}


@pytest.mark.parametrize(("before", "after"), SAFE.values(), ids=SAFE.keys())
def test_safe_fix(before: str, after: str) -> None:
    assert fix(before) == after
    assert fix(after) == after


@pytest.mark.parametrize(
    "code",
    [
        "import torch\nx = torch.zeros(3, device='cuda')\n",
        "import torch\ndef f(x, device):\n    return x.cuda()\n",
        "from torch.cuda import synchronize\nsynchronize()\n",
        "import torch\nif x: torch.cuda.synchronize()\n",
        "import torch\nx = torch.cuda.synchronize()\n",
        "import torch\nif torch.cuda.is_available():\n    torch.cuda.empty_cache()\nelse:\n    print()\n",
        "import torch\nwith torch.autocast('cuda'):\n    pass\n",
    ],
)
def test_what_could_change_the_meaning_is_not_touched_without_leave(code: str) -> None:
    assert fix(code) == code


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def f(x, device):\n    return x.cuda(non_blocking=True)\n",
         "def f(x, device):\n    return x.to(device, non_blocking=True)\n"),
        ("import torch\ndef f(x, y: torch.Tensor):\n    return x.to('cuda')\n",
         "import torch\ndef f(x, y: torch.Tensor):\n    return x.to(y.device)\n"),
        ("def f(x):\n    return x.to('cuda')\n", "def f(x):\n    return x.to('cuda')\n"),
        ("import torch\ng = torch.Generator('cuda')\n",
         "import torch\ng = torch.Generator((torch.accelerator.current_accelerator(check_available=True)"
         ' or torch.device("cpu")).type)\n'),
    ],
)  # fmt: skip
def test_unsafe_fix_takes_the_device_in_hand(before: str, after: str) -> None:
    assert fix(before, unsafe=True) == after


def test_encoding_and_mark_stay() -> None:
    for encoding, head in (("latin-1", "# coding: latin-1\n"), ("utf-8-sig", "")):
        code = f"{head}import torch\nname = 'é'\ntorch.cuda.manual_seed_all(0)\n"
        fixed = fix_source("m.py", code.encode(encoding), RULES, unsafe=False)
        assert fixed.count == 1
        assert fixed.after.decode(encoding) == code.replace("cuda.manual_seed_all", "manual_seed")


def test_a_patch_is_what_changed_and_nothing_more() -> None:
    code = "import torch\ntorch.cuda.manual_seed_all(0)"
    text = patch("m.py", fix_source("m.py", code.encode(), RULES, unsafe=False))
    assert text.splitlines()[:2] == ["--- a/m.py", "+++ b/m.py"]
    assert "-torch.cuda.manual_seed_all(0)\n\\ No newline at end of file\n" in text


def test_writing_keeps_permissions_and_links(tmp_path: Path) -> None:
    file = tmp_path / "run.py"
    file.write_bytes(b"old")
    file.chmod(0o750)
    (tmp_path / "link.py").symlink_to(file)
    replace_file(str(tmp_path / "link.py"), b"new", existing=True)
    assert file.read_bytes() == b"new"
    assert os.stat(file).st_mode & 0o777 == 0o750
    assert (tmp_path / "link.py").is_symlink()
    with pytest.raises(OSError, match="gone"):
        replace_file(str(tmp_path / "gone.py"), b"new", existing=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.py", "run.py"]


def test_edits_are_made_from_left_to_right() -> None:
    assert apply_edits("abcdef", [Edit(4, 5, "X"), Edit(0, 1, ""), Edit(3, 3, "-")]) == "bc-dXf"


EXAMPLES = [
    code
    for rule in RULES
    for code in (*rule.valid, *(bad.code for bad in rule.invalid if bad.path.endswith(".py")))
    if isinstance(code, str)
]
_MENDED = (
    "import torch\ntorch.cuda.empty_cache()\n"
    "def mended(choices=['cuda', 'cpu']):\n    torch.cuda.manual_seed(0)\n"
)
_SELECTION = 'import torch\ndevice = "cuda" if torch.cuda.is_available() else "cpu"\n'


def test_a_fix_takes_no_word_that_another_finding_needs() -> None:
    """Where CUDA's own name is gone, the list of devices without MPS is still seen."""
    code = "import torch\ntorch.cuda.manual_seed_all(0)\nassert x in ('cpu', 'gpu')\n"
    fixed = fix_source("m.py", code.encode(), RULES, unsafe=False).after
    assert b"cuda" not in fixed
    for data in (code.encode(), fixed):
        assert [f.code for f in analyse("m.py", data, RULES) if f.line == 3] == ["DEV105"]


@pytest.mark.parametrize("unsafe", [False, True])
def test_a_fix_in_one_example_hides_nothing_of_the_others(unsafe: bool) -> None:
    """Every example beside one that is mended, in one module and in one function."""
    lost = []
    for code in EXAMPLES:
        both = f"{code}\n{_MENDED}"
        for made in passes("m.py", both.encode(), RULES, unsafe=unsafe):
            later = analyse("m.py", made.after, RULES)
            lost += [f"{line}: {both}" for line in hidden(made, later)]
    assert lost == []


@pytest.mark.parametrize(
    "beside",
    [
        "torch.cuda.empty_cache()\n",
        "torch.cuda.synchronize()\n",
        "if torch.cuda.is_available():\n    torch.cuda.empty_cache()\n",
        "dtype = torch.bfloat16 if device in ['cuda', 'xpu'] else torch.float32\n",
        "def other(x):\n    return x.to('mps')\n",
        "if torch.backends.mps.is_available():\n    print('slow on mps')\n",
        "names = ['mps', 'xpu']\n",
        "wait = torch.accelerator.synchronize\n",
    ],
)
def test_what_is_said_of_a_device_elsewhere_does_not_speak_for_a_selection(beside: str) -> None:
    for code in (_SELECTION + beside, "import torch\n" + beside + _SELECTION):
        fixed = fix(code)
        (line,) = [n for n, text in enumerate(fixed.splitlines(), 1) if "device = " in text]
        found = [(f.code, f.line) for f in analyse("m.py", fixed.encode(), RULES)]
        assert ("DEV104", line) in found


def test_a_binding_that_was_mended_does_not_speak_for_another_of_the_same_name() -> None:
    code = _SELECTION + 'print(device)\ndevice = given or f"cuda:{rank}"\n'
    (made,) = passes("m.py", code.encode(), [BY_CODE["DEV103"]], unsafe=True)
    assert b'"mps" if torch.backends.mps' in made.after
    assert [(f.code, f.line) for f in analyse("m.py", made.after, RULES)] == [("DEV104", 2)]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=80)
def test_grown_programs_break_nothing(seed: int) -> None:
    import random

    tally = Tally()
    check(program(random.Random(seed)).encode(), tally)
    assert tally.problems == []


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_arbitrary_bytes_break_nothing(data: bytes) -> None:
    for finding in analyse("m.py", b"cuda" + data, RULES):
        assert finding.line >= 1


def test_mutated_files_break_nothing_and_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "real.py").write_bytes(Path(__file__).read_bytes())
    assert main([str(tmp_path), "--count", "100", "--seed", "5"]) == 0
    assert capsys.readouterr().out.startswith("100 inputs, ")
    assert len(set(inputs(5, 40, []))) > 30


def test_the_fuzzer_sees_a_fix_that_is_not_final(monkeypatch: pytest.MonkeyPatch) -> None:
    from conformance.scan.proving import fuzz

    broken = lambda path, data, rules, *, unsafe: fix_source(  # noqa: E731
        path, data + b"(", rules, unsafe=unsafe
    )
    monkeypatch.setattr(fuzz, "fix_source", broken)
    tally = Tally()
    check(b"import torch\ntorch.cuda.manual_seed_all(0)\n", tally)
    assert tally.problems


def test_the_fuzzer_sees_a_finding_that_a_fix_hides() -> None:
    code = _SELECTION + "torch.cuda.empty_cache()\n"
    (made,) = passes("m.py", code.encode(), RULES, unsafe=False)
    later = analyse("m.py", made.after, RULES)
    assert hidden(made, later) == []
    assert hidden(made, [f for f in later if f.code != "DEV104"]) == ["DEV104 in line 2"]


_CHAIN = 'if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"'
_FOUND = '(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # The caller's flag stays.
        ("device = 'cuda' if want and torch.cuda.is_available() else 'cpu'",
         "device = 'cuda' if want and torch.cuda.is_available() else \"mps\" if want and torch.backends.mps.is_available() else 'cpu'"),
        ("device = 'cpu' if not (want and torch.cuda.is_available()) else 'cuda'",
         "device = 'cuda' if not (not (want and torch.cuda.is_available())) else \"mps\" if not (not (want and torch.backends.mps.is_available())) else 'cpu'"),
        ("def f(x, gather_on_cpu):\n    d = 'cpu' if gather_on_cpu else 'cuda'\n    return x.to(d)",
         f"def f(x, gather_on_cpu):\n    d = 'cpu' if gather_on_cpu else {_FOUND}.type\n    return x.to(d)"),
        ("def f(x, offload):\n    d = 'cpu' if offload else torch.device('cuda')\n    return x.to(d)",
         f"def f(x, offload):\n    d = 'cpu' if offload else {_FOUND}\n    return x.to(d)"),
        # The index stays.
        ("def f(x, rank):\n    return x.to(f'cuda:{rank}')", f"def f(x, rank):\n    return x.to((f'cuda:{{rank}}' {_CHAIN}))"),
        ("def f(x, rank):\n    return x.cuda(rank)", f'def f(x, rank):\n    return x.to(f"cuda:{{rank}}" {_CHAIN})'),
        ("def f(x, place):\n    return x.cuda(place)", "def f(x, place):\n    return x.cuda(place)"),
        ("device = torch.device('cuda:1' if torch.cuda.is_available() else 'cpu')",
         "device = torch.device('cuda:1' if torch.cuda.is_available() else \"mps\" if torch.backends.mps.is_available() else 'cpu')"),
        # A text stays a text, and a device a device.
        ("class A:\n    def __init__(self):\n        self.device = 'cuda'", f"class A:\n    def __init__(self):\n        self.device = {_FOUND}.type"),
        ("class A:\n    def __init__(self):\n        self.device = torch.device('cuda')", f"class A:\n    def __init__(self):\n        self.device = {_FOUND}"),
        # What answers 0 without CUDA goes on doing so.
        ("used = torch.cuda.memory_allocated(0)", "used = (torch.accelerator.memory_allocated(0) if torch.accelerator.is_available() else 0)"),
        ("torch.cuda.reset_peak_memory_stats()", "if torch.accelerator.is_available():\n    torch.accelerator.reset_peak_memory_stats()"),
        # What was moved to CUDA is: neither a tensor's own device nor a missing one stands for it.
        ("def f(x: torch.Tensor):\n    return x.cuda()", f"def f(x: torch.Tensor):\n    return x.to({_FOUND})"),
        ("def f(x, device=None):\n    return x.cuda()", f"def f(x, device=None):\n    return x.to({_FOUND})"),
        ("def f(x, device: int):\n    return x.cuda()", f"def f(x, device: int):\n    return x.to({_FOUND})"),
        ("def f(x, device):\n    if device != 'cpu':\n        x = x.cuda()\n    return x", "def f(x, device):\n    if device != 'cpu':\n        x = x.to(device)\n    return x"),
        ("def f(x: torch.Tensor, net):\n    x = x.to(net.place)\n    with torch.autocast('cuda'):\n        return net(x)",
         "def f(x: torch.Tensor, net):\n    x = x.to(net.place)\n    with torch.autocast('cuda'):\n        return net(x)"),
        ("model = torch.load('x')", 'model = torch.load(\'x\', map_location=None if torch.cuda.is_available() else "cpu")'),
        ("net.load_state_dict(torch.load('x'))", "net.load_state_dict(torch.load('x', map_location=\"cpu\"))"),
        ("s = torch.cuda.Stream()\nwith torch.cuda.stream(s):\n    pass", "s = torch.cuda.Stream()\nwith torch.cuda.stream(s):\n    pass"),
    ],
)  # fmt: skip
def test_an_unsafe_fix_still_runs_on_cuda(before: str, after: str) -> None:
    assert fix(f"import torch\n{before}\n", unsafe=True) == f"import torch\n{after}\n"
