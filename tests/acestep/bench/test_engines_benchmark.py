"""The engines' benchmark counts what is computed, and nothing else."""

from __future__ import annotations

import pytest
import torch

from acestep.bench import engines_benchmark as benchmark

mx = pytest.importorskip("mlx.core", reason="there is no MLX for this system")


def test_what_is_counted() -> None:
    mine, theirs = torch.ones(4, 3), mx.ones((4, 3))
    mx.eval(theirs)
    assert benchmark.dispatches(lambda: (mine.T + mine.T * 2).sin()) == 3
    count = benchmark.nodes(lambda: mx.eval(mx.sin(theirs.T + mx.abs(theirs.T))))
    assert count == 3
    with benchmark.evaluations() as seen:
        mx.eval({"a": [theirs]}, theirs)
        mx.eval(theirs)
    assert seen == [2]
    assert benchmark._flat(({"a": [1, (2,)]}, 3)) == [1, 2, 3]
