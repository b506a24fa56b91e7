"""Sampling: checked settings, and noise that depends on seed, step and column alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.errors import RequestError
from acestep.lm.sampling import Sampling, fold, gumbel

# What the hash gave when it was written: seeds must keep their songs.
PINNED = [0.575457, -1.659268, 0.376722, 1.166673]


def noise(seeds: list[int], step: int, width: int) -> torch.Tensor:
    return gumbel(torch.tensor(fold(seeds))[:, None], torch.tensor([step]), width)


def test_noise_is_fixed_for_all_time() -> None:
    values = noise([7], 3, 4)[0].tolist()
    assert values == pytest.approx(PINNED, abs=1e-5)


def test_noise_does_not_depend_on_the_batch() -> None:
    both = noise([1, 2], 5, 1000)
    assert torch.equal(both[1], noise([2], 5, 1000)[0])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both[0], noise([1], 6, 1000)[0])
    assert torch.equal(both[0, :10], noise([1], 5, 10)[0])


def test_noise_draws_from_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = torch.cat([noise(list(range(step, 20000, 9)), step, 4) for step in range(9)])
    draws = probabilities.log() + drawn
    shares = torch.bincount(draws.argmax(dim=1), minlength=4) / len(draws)
    assert shares.tolist() == pytest.approx(probabilities.tolist(), abs=0.012)


@settings(max_examples=50)
@given(st.integers(0, 2**63 - 1), st.integers(0, 100_000))
def test_noise_is_finite_for_any_seed(seed: int, step: int) -> None:
    values = noise([seed], step, 4096)[0]
    assert torch.isfinite(values).all()
    assert -3.0 < float(values.min()) < 0
    assert float(values.mean()) == pytest.approx(0.5772, abs=0.15)
    assert float(values.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.2)


def test_guidance_mixes_the_halves() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    history = torch.zeros(1, 1, dtype=torch.int64)
    assert Sampling(guidance=2.0).guide(history, logits).tolist() == [[1.5, 1.0]]
    assert Sampling(guidance=1.0).guide(history, logits) is logits


def test_processors_are_those_asked_for() -> None:
    assert len(Sampling(0.0, 5, 0.5).processors()) == 0
    assert len(Sampling(1.0, 0, 1.0).processors()) == 0
    assert len(Sampling(0.5, 5, 0.5, 1.1).processors()) == 4


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-0.1),
        Sampling(temperature=float("nan")),
        Sampling(top_k=-1),
        Sampling(top_p=1.5),
        Sampling(repetition_penalty=0.0),
        Sampling(guidance=0.5),
    ],
)
def test_settings_out_of_range_are_refused(sampling: Sampling) -> None:
    with pytest.raises(RequestError, match="out of range"):
        sampling.checked()
