"""Time warping: equal to the recurrence written out, ties included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from acestep.alignment.dtw import _Trace, warp_path
from acestep.errors import RequestError


def naive_path(cost: NDArray[Any]) -> list[list[int]]:
    """The recurrence cell by cell, as the definition has it, in the dtype of `cost`."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf, dtype=cost.dtype)
    taken = np.full((rows + 1, columns + 1), -1)
    total[0, 0] = 0
    for j in range(1, columns + 1):
        for i in range(1, rows + 1):
            c0, c1, c2 = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if c0 < c1 and c0 < c2:
                taken[i, j], before = 0, c0
            elif c1 < c0 and c1 < c2:
                taken[i, j], before = 1, c1
            else:
                taken[i, j], before = 2, c2
            total[i, j] = cost[i - 1, j - 1] + before
    taken[0, :], taken[:, 0] = 2, 1
    i, j, path = rows, columns, []
    while i or j:
        path.append([i - 1, j - 1])
        step = taken[i, j]
        i, j = i - (step != 2), j - (step != 1)
    return path[::-1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("values", [2, 3, 9])
def test_equal_to_the_naive_path_on_many_ties(dtype: type, values: int) -> None:
    """2,400 small matrices of a few whole numbers (in all six cases together), so that
    most cells have equal predecessors."""
    generator = np.random.default_rng(values)
    for _ in range(400):
        shape = generator.integers(1, 10, size=2)
        cost = (generator.integers(0, values, size=shape) - 1).astype(dtype)
        assert warp_path(cost).tolist() == naive_path(cost), cost


@settings(max_examples=60)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(-2, 2, width=32),
    )
)
def test_equal_to_the_naive_path_and_covers_everything(cost: NDArray[Any]) -> None:
    path = warp_path(cost)
    assert path.tolist() == naive_path(cost)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [cost.shape[0] - 1, cost.shape[1] - 1]
    steps = np.diff(path, axis=0)
    assert ((steps >= 0) & (steps <= 1)).all()
    assert (steps.sum(axis=1) >= 1).all()


def test_tie_of_the_two_cheapest_takes_the_dearer_third() -> None:
    """At the last cell c0 = c1 = 0 < c2 = 1: neither is strictly least, so c2 it is."""
    assert warp_path(np.array([[0.0, 0.0], [1.0, 0.0]])).tolist() == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (40, 3), (3, 40)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    cost = np.random.default_rng(5).random(shape)
    assert warp_path(cost).tolist() == naive_path(cost)


def test_any_memory_layout_gives_the_same_path() -> None:
    cost = np.random.default_rng(6).integers(0, 3, (9, 14)).astype(np.float32)
    expected = naive_path(cost)
    assert warp_path(np.asfortranarray(cost)).tolist() == expected
    assert warp_path(np.repeat(cost, 2, axis=1)[:, ::2]).tolist() == expected


def test_the_trace_takes_two_bytes_a_cell() -> None:
    trace = _Trace(np.zeros((13, 29)))
    assert trace.leaves_row.nbytes + trace.is_diagonal.nbytes == 2 * 13 * 29


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_costs_that_are_not_finite(bad: float) -> None:
    with pytest.raises(RequestError, match="finite"):
        warp_path(np.array([[0.0, bad]]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 2, 2)])
def test_costs_that_are_no_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"\[rows, columns\].*got shape \["):
        warp_path(np.zeros(shape))
