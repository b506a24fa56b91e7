"""Random programs, and PyTorch's own operator database, against the simulation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import simulate
from conformance.simulate import expectations, fidelity, fuzz, gaps, operators
from conformance.simulate.memory import Ledger


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1))
def test_programs_agree_with_the_cpu(seed: int) -> None:
    program = fuzz.program(seed)
    with simulate.mps(fallback=False):
        assert fuzz.difference(program) == "", program.text()


def test_the_fuzz_notices_other_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fuzz._on_device

    def wrong(pool: list[torch.Tensor]) -> list[torch.Tensor]:
        moved = plain(pool)
        moved[5] += 1
        return moved

    monkeypatch.setattr(fuzz, "_on_device", wrong)
    assert fuzz.main(["--count", "3"]) == 1
    assert "other values" in capsys.readouterr().out


def test_the_fuzz_notices_lost_aliasing_and_lost_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    program = fuzz.Program(0, [("nothing", lambda t: None)])
    plain = fuzz._on_device
    changes = {
        "share memory": lambda t: [t[0], t[0].t().clone().t(), *t[2:]],
        "left the device": lambda t: [*t[:5], t[5].cpu()],
        "another dtype": lambda t: [*t[:5], t[5].half()],
    }
    for words, change in changes.items():
        with monkeypatch.context() as patch, simulate.mps():
            patch.setattr(fuzz, "_on_device", lambda pool, change=change: change(plain(pool)))
            assert words in fuzz.difference(program)
    program.steps[:] = [("oops", lambda t: t[0].view(3) if t[0].is_cpu else None)]
    with simulate.mps():
        assert "the CPU said RuntimeError" in fuzz.difference(program)


def test_the_fuzz_reports_that_nothing_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--count", "2", "--seed", "7"]) == 0
    assert capsys.readouterr().out == "2 programs, 0 differences\n"


@pytest.mark.filterwarnings("ignore")
def test_a_seeded_part_of_the_operator_database_agrees() -> None:
    ops = fidelity.operators("", 6, seed=11)
    found = list(fidelity.outcomes(ops, expectations.Expectations.installed(), 2))
    score = fidelity.Score.of(outcome for outcome in found if not outcome.on_host)
    assert score.total > 30
    assert score.agreement >= 0.95, "\n".join(fidelity.disagreements(found))


@pytest.mark.filterwarnings("ignore")
def test_operators_that_mps_lacks_are_refused_in_every_type() -> None:
    ops = fidelity.operators("^(linalg_eigh|mode|nn_functional_pdist|frexp)$", None, 0)
    assert len(ops) == 4
    found = list(fidelity.outcomes(ops, expectations.Expectations.installed(), 2))
    assert {outcome.expected for outcome in found} == {expectations.Expectation.NEVER}
    assert fidelity.Score.of(found).recall == 1


@pytest.mark.filterwarnings("ignore")
def test_a_simulation_that_refuses_nothing_scores_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    ops = fidelity.operators("^(linalg_eigh|mode|frexp)$", None, 0)
    found = list(fidelity.outcomes(ops, expectations.Expectations.installed(), 2))
    assert fidelity.Score.of(found).recall < 0.5
    assert any(line.startswith("ran ") for line in fidelity.disagreements(found))


@pytest.mark.filterwarnings("ignore")
def test_the_script_prints_scores_and_disagreements(capsys: pytest.CaptureFixture[str]) -> None:
    assert fidelity.main(["--ops", "^(abs|mode)$", "--samples", "1"]) == 0
    text = capsys.readouterr().out
    assert "precision" in text
    assert "operators listed for every element type" in text


def test_scores() -> None:
    runs, fails = expectations.Expectation.RUNS, expectations.Expectation.FAILS
    made = [
        fidelity.Outcome("a", torch.float32, runs, False),
        fidelity.Outcome("b", torch.float32, runs, True),
        fidelity.Outcome("c", torch.float32, fails, True),
        fidelity.Outcome("d", torch.float32, fails, False),
    ]
    score = fidelity.Score.of(made)
    assert math.isclose(score.precision, 0.5)
    assert math.isclose(score.recall, 0.5)
    assert math.isclose(score.agreement, 0.5)
    assert "4 outcomes" in str(score)


def test_lists_are_read_from_source() -> None:
    source = (
        "def f():\n"
        "    SUPPORTED_COMPLEX_OPS = {'abs'}\n"
        "    UNIMPLEMENTED_XFAILLIST: dict = {'mode': None, 'glu': [torch.int8]}\n"
        "    UNDEFINED_XFAILLIST = {}\n    ON_MPS_XFAILLIST = {'sort': [torch.bool]}\n"
        "    SKIPLIST = {}\n    EMPTY_OPS_SKIPLIST = {'empty': None}\n"
    )
    lists = expectations.Expectations.read(source)
    assert lists.unimplemented == {"mode": None, "glu": frozenset({torch.int8})}
    assert lists.complex_operators == {"abs"}
    with pytest.raises(ValueError, match="no UNDEFINED_XFAILLIST in this text"):
        expectations.Expectations.read("x = 1")
    assert gaps.complex_from("x = 1") == frozenset()


def test_installed_lists_name_known_operators() -> None:
    listed = gaps.installed()
    assert torch.bool in listed["aten::relu"]
    for name in listed:
        assert hasattr(torch.ops.aten, name.removeprefix("aten::"))


def test_the_dispatch_tables_are_those_of_torchgen() -> None:
    from torchgen.gen import parse_native_yaml
    from torchgen.model import DispatchKey

    folder = Path(torch.__file__).parents[1] / "torchgen/packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    by_name = {str(function.func.name): function for function in parsed.native_functions}
    keys = {"dense": DispatchKey.MPS, "coo": DispatchKey.SparseMPS, "csr": DispatchKey.SparseCsrMPS}
    expected = {}
    for name, function in by_name.items():
        delegate = function.structured_delegate
        served = by_name[str(delegate)] if delegate is not None else function
        expected[name] = {
            kind: parsed.backend_indices[key].has_kernel(served) for kind, key in keys.items()
        } | {
            "composite": function.has_composite_explicit_autograd_kernel
            or function.has_composite_implicit_autograd_kernel
            or function.has_composite_explicit_autograd_non_functional_kernel
        }
    text = (folder / "native_functions.yaml").read_text(encoding="utf-8")
    assert operators.read_tables(text) == expected
    with pytest.raises(ValueError, match="no MPS kernel in this text"):
        operators.read_tables(text.replace("MPS", "Metal"))


@pytest.mark.filterwarnings("ignore")
def test_an_operator_with_float64_samples_only_is_judged_by_them() -> None:
    (op,) = fidelity.operators("^to$", None, 0)
    found = list(fidelity.outcomes([op], expectations.Expectations.installed(), 2))
    assert fidelity.Score.of(found).recall == 1
    assert all("Cannot convert a MPS Tensor to float64" in o.error for o in found if not o.on_host)


def test_a_ledger_that_forgets_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "mark", lambda self, tensor: None)
    with simulate.mps():
        assert torch.ones(1, device="mps").is_cpu


def test_lists_of_before_2_13_are_read() -> None:
    """Their conditions are of an older macOS than any that is stood for by default."""
    text = (
        "UNIMPLEMENTED_XFAILLIST = {'scatter_reduceamax': [torch.int32, torch.int64]"
        " if MACOS_VERSION < 15.0 else [torch.int64], 'put': None}"
    )
    assert gaps.lists_from(text) == {"scatter_reduceamax": {torch.int64}, "put": None}


@pytest.mark.usefixtures("sim")
def test_what_2_11_lists_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"nn.functional.grid_sample": None, "scatter_reduceamax": frozenset({torch.int64})}
    monkeypatch.setattr(gaps, "listed", lambda name: listed.get(name, frozenset()))
    image, grid = torch.ones(1, 1, 2, 2, device="mps"), torch.zeros(1, 1, 1, 2, device="mps")
    torch.nn.functional.grid_sample(image, grid, align_corners=False)
    with pytest.raises(RuntimeError, match="MPS: Unsupported Border padding mode"):
        torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
    places = torch.tensor([0, 1], device="mps")
    torch.ones(2, device="mps").scatter_reduce(0, places, torch.ones(2, device="mps"), "amax")
    with pytest.raises(RuntimeError, match="scatter_reduce_int64"):
        places.scatter_reduce(0, places, places, "amax")
