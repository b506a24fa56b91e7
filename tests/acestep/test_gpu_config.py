"""Tests of the memory tiers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.device import DevicePolicy, resolve
from acestep.errors import RequestError
from acestep.gpu_config import (
    check_batch_size_limit,
    check_duration_limit,
    get_gpu_config,
    get_gpu_memory_gb,
    get_gpu_tier,
    is_short,
)

# GB, tier, seconds with the LM and without, batch with and without, LMs, loaded by default
TABLE = [
    (0, "tier1", 180, 180, 1, 1, 0, False),
    (4, "tier1", 180, 180, 1, 1, 0, False),
    (6, "tier2", 360, 360, 1, 1, 0, False),
    (8, "tier3", 240, 360, 1, 2, 1, False),
    (12, "tier4", 240, 360, 2, 4, 1, False),
    (16, "tier5", 240, 360, 2, 4, 2, True),
    (24, "tier6", 480, 480, 4, 8, 3, True),
    (24.5, "unlimited", 600, 600, 8, 8, 3, True),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}GB")
def test_table(row: tuple[float, str, float, float, int, int, int, bool]) -> None:
    gb, tier, long_lm, long, batch_lm, batch, models, lm_on = row
    config = get_gpu_config(gb)
    assert (config.tier, config.gpu_memory_gb) == (tier, gb)
    assert get_gpu_tier(gb) == tier
    assert (config.max_duration(True), config.max_duration(False)) == (long_lm, long)
    assert (config.max_batch_size(True), config.max_batch_size(False)) == (batch_lm, batch)
    assert len(config.available_lm_models) == models
    assert config.init_lm_default is lm_on
    assert config.offload_to_cpu_default is (0 < gb < 16)


@given(st.floats(0, 200), st.floats(0, 200))
def test_more_memory_never_allows_less_without_the_lm(first: float, second: float) -> None:
    small, large = (get_gpu_config(gb) for gb in sorted((first, second)))
    assert small.max_batch_size() <= large.max_batch_size()
    assert set(small.available_lm_models) <= set(large.available_lm_models)


def test_the_cpu_counts_as_no_accelerator(policy: DevicePolicy) -> None:
    assert get_gpu_memory_gb(policy) == 0
    assert get_gpu_config(policy=policy).tier == "host"


@pytest.mark.parametrize("variable", ["MAX_CUDA_VRAM", "ACESTEP_DEVICE_MEMORY_GB"])
def test_simulated_memory(
    variable: str, policy: DevicePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "7.5")
    config = get_gpu_config(policy=policy)
    assert config.tier == "tier3"
    assert not config.offload_to_cpu_default, "the CPU has nothing to offload to"
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(RequestError, match=variable):
            get_gpu_memory_gb(policy)


def test_checks_say_what_and_why() -> None:
    config = get_gpu_config(4)
    assert check_duration_limit(180, config)[0]
    ok, line = check_duration_limit(181, config)
    assert not ok
    assert "181 s is above the limit of 180 s for tier1" in line
    assert check_batch_size_limit(1, config)[0]
    ok, line = check_batch_size_limit(2, config)
    assert not ok
    assert "a batch of 2 is above the limit of 1" in line


def test_weights_in_few_bits_leave_room_for_a_language_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a card of 6 GB two of them, with offloading; on 12 GB all of them, without."""
    monkeypatch.setenv("MAX_CUDA_VRAM", "6")
    card = replace(
        resolve("cpu", quantization="int8"), device=torch.device("cuda"), unified_memory=False
    )
    plain = get_gpu_config(policy=replace(card, quantization=None))
    small = get_gpu_config(policy=card)
    assert (plain.tier, plain.available_lm_models) == ("tier2", ())
    fitting = ("acestep-5Hz-lm-0.6B", "acestep-5Hz-lm-1.7B")
    assert (small.tier, small.available_lm_models) == ("tier2", fitting)
    assert small.offload_to_cpu_default
    assert small.max_duration(lm_initialized=True) >= 240
    assert is_short(card)
    assert not is_short(resolve("cpu"))
    monkeypatch.setenv("MAX_CUDA_VRAM", "12")
    large = get_gpu_config(policy=card)
    assert len(large.available_lm_models) == 3
    assert not large.offload_to_cpu_default
    assert not is_short(card)
