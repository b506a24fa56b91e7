"""The policy at run time."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch

from acestep.device import resolve


def test_policy_is_immutable() -> None:
    policy = resolve("cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.device = torch.device("meta")  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.dtypes["dit"] = policy.dtypes["vae"]  # type: ignore[index]


def test_autocast_names_this_device() -> None:
    assert isinstance(resolve("cpu").autocast(), nullcontext)
    with resolve("cpu", dtype="bfloat16").autocast("dit"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.bfloat16


def test_generator_is_on_the_host_and_follows_its_seed() -> None:
    policy = resolve("cpu")
    first, second = (torch.randn(8, generator=policy.generator(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.randn(8, generator=policy.generator(6)))
    assert policy.generator(5).device == torch.device("cpu")


def test_cpu_housekeeping_does_nothing_and_measures() -> None:
    policy = resolve("cpu")
    policy.synchronize()
    policy.flush()
    policy.between_steps()
    policy.reset_peak_memory()
    assert policy.peak_memory() > 0.05
