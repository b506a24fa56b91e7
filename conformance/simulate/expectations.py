"""What PyTorch's own MPS tests expect of each operator, read from their source."""

from __future__ import annotations

import enum
import unittest
from dataclasses import dataclass
from typing import Any

import torch

from conformance.simulate import gaps

_Lists = dict[str, frozenset[torch.dtype] | None]

_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float64,
    torch.complex128,
)
WIDE = (torch.float64, torch.complex128)
_NUMERIC = ("UNDEFINED_XFAILLIST", "ON_MPS_XFAILLIST", "SKIPLIST", "EMPTY_OPS_SKIPLIST")


PARTS_HAVE_KERNELS = {
    "svd_lowrank": "seen to run: pytorch/pytorch issue 187567 uses it on 2.13 and 2.14, where it "
    "fails only on tall matrices; it projects on random numbers as pca_lowrank does, of which the "
    "lists say that signs follow the stream, so that its values differ from the CPU's",
    "masked.median": "it is torch.where and torch.nanmedian(dim).values, of which the lists name "
    "only bool as missing; no refusal of it is on record",
    "linalg.pinvsingular": "listed by 2.11 and older for want of linalg_qr, by which the tests "
    "make its matrices; itself it is a product and linalg_svd, which runs on the host",
}
"""Operators listed for every element type that run all the same: name to what is known."""

_TEST_CLASS = "TestConsistency"
"""The class of PyTorch's test_mps.py that compares operators with the CPU."""


class Expectation(enum.Enum):
    """What the lists say of one operator in one element type."""

    RUNS = "runs"
    FAILS = "fails in this element type"
    NEVER = "fails in every element type"
    UNDECIDED = "differs in value, or is not tested"


def tested_dtypes(op: Any) -> list[torch.dtype]:
    """The element types PyTorch's MPS tests run an operator in, and the 64-bit ones."""
    supported = op.supported_dtypes("mps")
    return [dtype for dtype in _DTYPES if dtype in supported]


@dataclass(frozen=True)
class Expectations:
    """The lists of one `common_mps.py`."""

    unimplemented: _Lists
    numeric: tuple[_Lists, ...]
    complex_operators: frozenset[str]

    @classmethod
    def installed(cls) -> Expectations:
        """The installed torch's."""
        return cls.read(gaps.installed_source())

    @classmethod
    def read(cls, source: str) -> Expectations:
        """From the text of a `common_mps.py`. Raises ValueError where a list is missing."""
        numeric = tuple(gaps.lists_from(source, name) for name in _NUMERIC)
        return cls(gaps.lists_from(source), numeric, gaps.complex_from(source))

    def of(self, op: Any, dtype: torch.dtype) -> Expectation:
        """What to expect of an entry of the operator database."""
        if any(getattr(mark, "__name__", "") == "onlyCUDA" for mark in op.decorators):
            # The database lists it for every device, and lets its tests run on one.
            return Expectation.UNDECIDED
        key = op.name + op.variant_test_name
        if key in self.unimplemented:
            dtypes = self.unimplemented[key]
            if dtypes is None:
                return Expectation.NEVER
            if dtype in dtypes:
                return Expectation.FAILS
        if dtype in WIDE or _expected_failure(op, dtype):
            return Expectation.FAILS
        if dtype.is_complex and key not in self.complex_operators:
            return Expectation.FAILS
        for lists in self.numeric:
            if key in lists and (lists[key] is None or dtype in (lists[key] or ())):
                return Expectation.UNDECIDED
        return Expectation.RUNS

    def settled_by_lists(self, name: str, dtype: torch.dtype) -> bool:
        """Whether the simulation itself takes its answer from these lists.

        There, agreement says only that the lists were read.
        """
        if dtype.is_complex:
            return name in gaps.COMPLEX_OPERATORS.values()
        return dtype in (self.unimplemented.get(name) or ()) and name in gaps.OPERATORS


def _expected_failure(op: Any, dtype: torch.dtype) -> bool:
    """Whether the entry itself says that the MPS consistency tests fail on it."""
    return any(
        _concerns(mark)
        and unittest.expectedFailure in mark.decorators
        and (mark.dtypes is None or dtype in mark.dtypes)
        for mark in op.decorators
    )


def _concerns(mark: Any) -> bool:
    name = getattr(mark, "cls_name", None)
    if name == _TEST_CLASS:
        return True
    return name == "TestCommon" and mark.device_type == "mps" and mark.test_name is None
