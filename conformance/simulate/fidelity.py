"""Compares the simulation with what PyTorch's own MPS tests expect, operator by operator.

`python -m conformance.simulate.fidelity` runs every entry of torch's operator database in every
element type that its MPS tests use, and counts how often the simulation and PyTorch's lists agree
on whether it runs.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import multiprocessing
import random
import re
import sys
import types
import unittest
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from conformance.simulate import checkout
from conformance.simulate.device import BACKEND
from conformance.simulate.expectations import (
    PARTS_HAVE_KERNELS,
    WIDE,
    Expectation,
    Expectations,
    tested_dtypes,
)
from conformance.simulate.session import mps

_SAMPLES = 25


@dataclass(frozen=True)
class Outcome:
    """One operator in one element type: what PyTorch expects and what happened here."""

    name: str
    dtype: torch.dtype
    expected: Expectation
    refused: bool
    error: str = ""
    on_host: bool = False
    """Whether the CPU itself refused: a simulation on the CPU cannot answer then."""

    @property
    def agrees(self) -> bool:
        """Whether both say it runs, or both that it does not."""
        return self.refused == (self.expected is not Expectation.RUNS)


@dataclass
class Score:
    """Precision and recall of "unsupported", and agreement, over outcomes."""

    right_refusals: int = 0
    wrong_refusals: int = 0
    missed: int = 0
    right_runs: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Score:
        """Counts the outcomes."""
        score = cls()
        for outcome in outcomes:
            expected = outcome.expected is not Expectation.RUNS
            score.right_refusals += outcome.refused and expected
            score.wrong_refusals += outcome.refused and not expected
            score.missed += expected and not outcome.refused
            score.right_runs += not outcome.refused and not expected
        return score

    @property
    def total(self) -> int:
        """How many outcomes were counted."""
        return self.right_refusals + self.wrong_refusals + self.missed + self.right_runs

    @property
    def precision(self) -> float:
        """Share of refusals here that PyTorch expects too."""
        return self.right_refusals / max(self.right_refusals + self.wrong_refusals, 1)

    @property
    def recall(self) -> float:
        """Share of PyTorch's expected failures that are refused here."""
        return self.right_refusals / max(self.right_refusals + self.missed, 1)

    @property
    def agreement(self) -> float:
        """Share of outcomes on which both say the same."""
        return (self.right_refusals + self.right_runs) / max(self.total, 1)

    def __str__(self) -> str:
        return (
            f"{self.total} outcomes: precision {self.precision:.1%}, recall {self.recall:.1%}, "
            f"agreement {self.agreement:.1%} ({self.wrong_refusals} refused wrongly, "
            f"{self.missed} missed)"
        )


_ARGUMENTS_ON_HOST = frozenset({"tensor_split"})
"""Operators whose tensor arguments stay on the host: C++ reads them before it dispatches."""


def _to_device(value: Any) -> Any:
    return value.detach().to(BACKEND) if isinstance(value, torch.Tensor) else value


def _wide(sample: Any) -> bool:
    values = (sample.input, *sample.args, *sample.kwargs.values())
    return any(getattr(value, "dtype", value) in WIDE for value in _flat(values))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        elif isinstance(value, (torch.Tensor, torch.dtype)):
            yield value


@contextmanager
def _untracked() -> Iterator[None]:
    """Samples are made without looking for the test that they are for.

    PyTorch searches the stack for it at each of them, and the search goes through all modules:
    nine tenths of the time here.
    """
    from torch.testing._internal import common_utils

    with patch.object(common_utils, "extract_test_fn", return_value=None):
        yield


def attempt(op: Any, dtype: torch.dtype, limit: int) -> tuple[str, bool]:
    """Runs an operator's samples on CPU and on the simulated device.

    Returns the first error there as `Type: message`, empty where all `limit` samples ran, and
    whether the CPU refuses them too. Samples that ask for a 64-bit floating type are left out, for no MPS tensor
    can have one, except where an operator has no others.
    """
    torch.manual_seed(0)
    random.seed(0)
    on_host = False
    try:
        with _untracked():
            every = list(itertools.islice(op.sample_inputs("cpu", dtype), limit))
    except Exception as error:  # noqa: BLE001 - samples that the CPU itself cannot make
        return _first_line(error), True
    samples = [sample for sample in every if not _wide(sample)] or every
    try:
        for sample in samples:
            op(sample.input, *sample.args, **sample.kwargs)
    except Exception:  # noqa: BLE001 - whatever an operator raises is its outcome
        on_host = True
    try:
        with mps():
            for sample in samples:
                moved = sample.transform(_to_device)
                placed = {"device": BACKEND} if "device" in moved.kwargs else {}
                args = sample.args if op.name in _ARGUMENTS_ON_HOST else moved.args
                op(moved.input, *args, **{**moved.kwargs, **placed})
    except Exception as error:  # noqa: BLE001 - as above
        return _first_line(error), on_host
    return "", False


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text}"


def outcomes(ops: Iterable[Any], expectations: Expectations, limit: int) -> Iterator[Outcome]:
    """One outcome for each operator and element type that PyTorch's lists decide."""
    for op in ops:
        for dtype in tested_dtypes(op):
            expected = expectations.of(op, dtype)
            if expected is Expectation.UNDECIDED:
                continue
            # What the lists never let run may be refused in the last kind of sample only.
            most = max(limit, _SAMPLES) if expected is Expectation.NEVER else limit
            error, on_host = attempt(op, dtype, most)
            name = op.name + op.variant_test_name
            yield Outcome(name, dtype, expected, bool(error), error, on_host)


def operators(pattern: str, count: int | None, seed: int) -> list[Any]:
    """Entries of the installed torch's operator database whose name matches `pattern`.

    `count` picks so many of them at random; None takes all.
    """
    if "expecttest" not in sys.modules and importlib.util.find_spec("expecttest") is None:
        # torch's test helpers derive a class from it; the operator database needs no more of it.
        stand_in: Any = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    found = [op for op in op_db if re.search(pattern, op.formatted_name)]
    if count is not None and count < len(found):
        found = random.Random(seed).sample(found, count)
    return found


def disagreements(found: Iterable[Outcome]) -> list[str]:
    """One line for each operator on which the two disagree, element types together."""
    rows: dict[tuple[str, bool, str], list[str]] = {}
    for outcome in found:
        if not outcome.agrees:
            key = (outcome.name, outcome.refused, outcome.error[:110])
            rows.setdefault(key, []).append(str(outcome.dtype).removeprefix("torch."))
    return [
        f"{'refused' if refused else 'ran    '}  {name} [{', '.join(dtypes)}] {error}"
        for (name, refused, error), dtypes in sorted(rows.items())
    ]


def _share(
    pattern: str, count: int | None, seed: int, most: int, jobs: int, job: int
) -> list[Outcome]:
    """The outcomes of every `jobs`-th operator, from the `job`-th on."""
    warnings.simplefilter("ignore")
    ops = operators(pattern, count, seed)[job::jobs]
    return list(outcomes(ops, Expectations.installed(), most))


def report(found: list[Outcome], expectations: Expectations) -> list[str]:
    """Scores, three ways, and the table of disagreements."""
    answered = [o for o in found if not o.on_host]
    own = [o for o in answered if not expectations.settled_by_lists(o.name, o.dtype)]
    never = [o for o in found if o.expected is Expectation.NEVER]
    refusals = [o for o in never if o.name not in PARTS_HAVE_KERNELS]
    return [
        f"torch {torch.__version__}; lists: torch/testing/_internal/common_mps.py",
        f"all: {Score.of(found)}",
        f"where the CPU has a kernel: {Score.of(answered)}",
        f"without the element types the simulation takes from the same lists: {Score.of(own)}",
        f"operators listed for every element type: {Score.of(never)}",
        f"of those, without the ones that run all the same: {Score.of(refusals)}",
        "listed, and run all the same:",
        *(f"{name}: {why}" for name, why in PARTS_HAVE_KERNELS.items()),
        "disagreements:",
        *disagreements(found),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m conformance.simulate.fidelity")
    parser.add_argument("--ops", default="", help="only names that match this expression")
    parser.add_argument(
        "--count", type=int, help="so many operators, and of a checkout's cases, picked at random"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=_SAMPLES, help="at most so many a type (25)")
    parser.add_argument("--jobs", type=int, default=1, help="processes to share the work (1)")
    parser.add_argument(
        "--pytorch-checkout",
        type=Path,
        metavar="DIR",
        help="also run the device-generic cases of DIR/test/test_mps.py under the simulation",
    )
    parser.add_argument("--cases", default="", help="of a checkout's cases these (pytest's -k)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints scores and disagreements; 2 for a folder without MPS tests, 1 if those do not run."""
    options = _parser().parse_args(arguments)
    folder: Path | None = options.pytorch_checkout
    try:
        if folder is not None:
            checkout.test_file(folder)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    expectations = Expectations.installed()
    jobs = max(options.jobs, 1)
    share = functools.partial(
        _share, options.ops, options.count, options.seed, options.samples, jobs
    )
    if jobs == 1:
        found = share(0)
    else:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            found = [outcome for part in pool.map(share, range(jobs)) for outcome in part]
    sys.stdout.write("\n".join(report(found, expectations)) + "\n")
    if folder is None:
        return 0
    try:
        said = checkout.run(folder, options.count, options.seed, options.cases)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n".join(said) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
