"""Lyric alignment on the simulated MPS device: same results, and one matrix to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from acestep.alignment.attention import contrast_map, energy_map
from acestep.bench.alignment_benchmark import GOLDEN, check_golden
from acestep.device import resolve
from acestep.dit_alignment_score import MusicLyricScorer
from conformance.simulate import mps


class Bytes:
    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


def test_reference_results() -> None:
    with mps():
        assert check_golden(GOLDEN, resolve("mps"))


@pytest.mark.parametrize(("condense", "extra"), [(energy_map, 0), (contrast_map, 3)])
def test_only_one_matrix_comes_to_the_host(condense: Callable[..., Any], extra: int) -> None:
    """Two heads of 20 x 50; the contrast brings three sums a row and head along."""
    attention = torch.rand(2, 3, 20, 50, generator=torch.Generator().manual_seed(0))
    expected = condense(attention, {0: [1], 1: [2]}, medfilt_width=3)
    with mps() as simulation:
        placed = attention.to("mps")
        simulation.recorder.clear()
        found = condense(placed, {0: [1], 1: [2]}, medfilt_width=3)
        copies = [key for key in simulation.recorder.transfers if key[2] == "copy"]
        brought = simulation.recorder.transferred
    assert [direction for direction, *_ in copies] == ["to host"]
    assert brought == {"to host": 4 * 20 * (50 + 2 * extra)}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_score_of_tensors_that_lie_on_the_device() -> None:
    """Where the public note begins: the energy, mask and path may be tensors anywhere."""
    scorer = MusicLyricScorer(Bytes())
    energy = torch.rand(5, 30, generator=torch.Generator().manual_seed(1))
    mask, path = torch.tensor([0, 1, 1, 1, 1]), torch.tensor([[i // 6, i] for i in range(30)])
    expected = scorer.calculate_score(energy, mask, path)
    with mps():
        placed = [tensor.to("mps") for tensor in (energy, mask, path)]
        assert scorer.calculate_score(*placed) == expected
