"""Dynamic time warping with ACE-Step's tie rule, one anti-diagonal at a time.

The rule is unusual: when both `(i-1, j-1)` and `(i-1, j)` are the cheapest and equal, the
step taken is `(i, j-1)`, although it costs more. DTW libraries (librosa, dtaidistance,
dtw-python, tslearn) take a minimum and let no caller choose otherwise, and a compiled loop
(numba) costs a second on first use. Cells of one anti-diagonal do not depend on each other,
so seven numpy operations serve a whole diagonal; `acestep.bench.alignment_benchmark` measures it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from acestep.errors import RequestError

Cost = NDArray[np.floating[Any]]
Path = NDArray[np.int64]


def warp_path(cost: Cost) -> Path:
    """The warping path through a cost matrix.

    The accumulated cost of a cell is its own cost plus that of a predecessor:
    `c0 = (i-1, j-1)` if strictly below both others, else `c1 = (i-1, j)` if strictly below
    both others, else `c2 = (i, j-1)`. Sums are kept in the dtype of `cost`.

    Args:
        cost: `[rows, columns]`, float32 or float64, finite, at least one cell.

    Returns:
        `[steps, 2]`, (row, column) from (0, 0) to the far corner; both never fall, and
        each step advances at least one of them by one.

    Raises:
        RequestError: the matrix is not two-dimensional, is empty, or is not finite.
    """
    cost = np.ascontiguousarray(cost)
    if cost.ndim != 2 or cost.size == 0:
        raise RequestError(
            f"time warping needs a cost matrix [rows, columns] with at least one cell, "
            f"got shape {list(cost.shape)}"
        )
    if not np.isfinite(cost).all():
        raise RequestError("time warping needs finite costs, but the matrix holds NaN or infinity")
    return _Trace(cost).path()


class _Trace:
    """The choice made at every cell: two flags of one byte, stored diagonal by diagonal."""

    def __init__(self, cost: Cost) -> None:
        self.rows, self.columns = cost.shape
        diagonals = np.arange(self.rows + self.columns - 1)
        low = np.maximum(0, diagonals - self.columns + 1)
        high = np.minimum(self.rows, diagonals + 1)
        offsets = np.concatenate([[0], np.cumsum(high - low)])
        self.low: list[int] = low.tolist()
        self.high: list[int] = high.tolist()
        self.offsets: list[int] = offsets.tolist()
        self.leaves_row = np.empty(cost.size, dtype=np.bool_)  # c0 or c1 was taken, not c2
        self.is_diagonal = np.empty(cost.size, dtype=np.bool_)  # of those two, c0
        self._fill(cost)

    def _fill(self, cost: Cost) -> None:
        """Sweep the anti-diagonals; slot `i + 1` of a buffer belongs to row `i`."""
        flat, columns = cost.ravel(), self.columns
        stride = max(columns - 1, 1)
        infinity = cost.dtype.type(np.inf)
        older = np.full(self.rows + 1, infinity)
        newer = older.copy()
        older[0] = 0  # the corner before the first cell
        best = np.empty_like(older)
        tied = np.empty(self.rows, dtype=np.bool_)
        for k, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            begin, end = self.offsets[k], self.offsets[k + 1]
            c0, c1, c2 = older[low:high], newer[low:high], newer[low + 1 : high + 1]
            up, tie = best[: high - low], tied[: high - low]
            np.less(c0, c1, out=self.is_diagonal[begin:end])
            np.equal(c0, c1, out=tie)
            np.minimum(c0, c1, out=up)
            np.copyto(up, infinity, where=tie)
            np.less(up, c2, out=self.leaves_row[begin:end])
            out = older[low + 1 : high + 1]  # c0 is spent, so its buffer takes the result
            np.minimum(up, c2, out=out)
            first = low * columns + k - low
            np.add(out, flat[first : first + (high - low - 1) * stride + 1 : stride], out=out)
            older[0] = infinity
            older, newer = newer, older

    def path(self) -> Path:
        """Walk back from the far corner; the borders leave one way only."""
        i, j = self.rows - 1, self.columns - 1
        leaves_row, is_diagonal = self.leaves_row.data, self.is_diagonal.data
        low, offsets = self.low, self.offsets
        steps = [(i, j)]
        while i or j:
            if i == 0:
                j -= 1
            elif j == 0:
                i -= 1
            else:
                cell = offsets[i + j] + i - low[i + j]
                if not leaves_row[cell]:
                    j -= 1
                else:
                    i -= 1
                    j -= is_diagonal[cell]
            steps.append((i, j))
        return np.array(steps[::-1], dtype=np.int64)
