"""Memory tiers: what each size allows, and that this device's memory is seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.entrypoints import covers
from conformance.suite.support import Api
from conformance.targets import Target, find
from conformance.tree import Absent

# (GB, tier, seconds with LM, without, batch with LM, without); public figures of ACE-Step 1.5.
TIERS = (
    (0, "tier1", 180, 180, 1, 1),
    (4, "tier1", 180, 180, 1, 1),
    (6, "tier2", 360, 360, 1, 1),
    (8, "tier3", 240, 360, 1, 2),
    (12, "tier4", 240, 360, 2, 4),
    (16, "tier5", 240, 360, 2, 4),
    (24, "tier6", 480, 480, 4, 8),
    (25, "unlimited", 600, 600, 8, 8),
)


@covers("S6", "gpu_config:get_gpu_tier", "gpu_config:get_gpu_config")
@pytest.mark.parametrize("row", TIERS, ids=lambda row: f"{row[0]}GB")
def test_tiers(api: Api, target: Target, row: tuple[float, str, int, int, int, int]) -> None:
    gb, tier, long_lm, long, batch_lm, batch = row
    assert api.get("gpu_config:get_gpu_tier")(gb) == tier
    config = api.get("gpu_config:get_gpu_config")(gb)
    found = (config.max_duration_with_lm, config.max_duration_without_lm)
    assert found == (long_lm, long)
    found = (config.max_batch_size_with_lm, config.max_batch_size_without_lm)
    assert found == (batch_lm, batch)


@covers("S6", "gpu_config:get_gpu_memory_gb", "gpu_config:get_gpu_config")
def test_memory_of_this_device(api: Api, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator counts with its memory; only a machine without one has none."""
    for variable in ("MAX_CUDA_VRAM", "ACESTEP_DEVICE_MEMORY_GB"):
        monkeypatch.delenv(variable, raising=False)
    if target.device == "cpu" and find()["cuda"].present:
        raise Absent("this machine's memory is CUDA's, which is judged in its own column")
    memory = api.get("gpu_config:get_gpu_memory_gb")
    found = memory()
    accelerated = target.device != "cpu" or find()["mps"].present
    assert (found > 0) is accelerated, f"{found} GB on {target.name}; {api.decided_at(memory)}"
    config = api.get("gpu_config:get_gpu_config")()
    assert config.tier == api.get("gpu_config:get_gpu_tier")(found)


@covers("S6", "gpu_config:get_gpu_memory_gb")
def test_a_simulated_size(api: Api, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CUDA_VRAM", "8")
    assert api.get("gpu_config:get_gpu_memory_gb")() == 8


@covers("gpu_config:is_short")
def test_a_small_card(api: Api, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short of memory is a card with little of its own, and nothing that shares the host's."""
    policy = api.get("device:resolve")(target.device, engine=target.engine)
    monkeypatch.setenv("MAX_CUDA_VRAM", "6")
    own = policy.is_accelerator and not policy.unified_memory
    assert api.get("gpu_config:is_short")(policy) is own
    monkeypatch.setenv("MAX_CUDA_VRAM", "80")
    assert not api.get("gpu_config:is_short")(policy)


@covers("gpu_config:check_ahead")
def test_two_songs_at_a_time(api: Api, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A song is planned beside another where the device does both, and has room for it."""
    policy = api.get("device:resolve")(target.device, engine=target.engine)
    check = api.get("gpu_config:check_ahead")
    monkeypatch.setenv("MAX_CUDA_VRAM", "80")
    if policy.overlaps:
        check(policy)
        monkeypatch.setenv("MAX_CUDA_VRAM", "6")
    with pytest.raises(api.get("errors:RequestError"), match="ahead"):
        check(policy)


@covers("gpu_config:host_need_gb", "gpu_config:host_audio_gb", "song.limits:Room.need")
def test_what_the_host_needs_grows_with_the_music(api: Api, target: Target) -> None:
    need, audio = api.get("gpu_config:host_need_gb"), api.get("gpu_config:host_audio_gb")
    assert 0 < need(10.0, 1, 192) < need(600.0, 1, 192) < need(600.0, 1, 2048)
    assert need(60.0, 4, 192) == need(240.0, 1, 192)
    assert 0 < audio(600.0, 1) < 1
    room = api.get("song.limits:Room")(None, False, True, 8.0, 192)
    assert room.need(60.0, 4) == need(60.0, 4, 192)


@covers(
    "gpu_config:check_batch_size_limit",
    "gpu_config:check_duration_limit",
    "gpu_config:GPUConfig.max_duration",
    "gpu_config:GPUConfig.max_batch_size",
)
@given(
    gb=st.floats(0, 200),
    seconds=st.floats(0.5, 900),
    batch=st.integers(1, 20),
    lm=st.booleans(),
)
def test_limits_hold_for_any_request(
    api: Api, target: Target, gb: float, seconds: float, batch: int, lm: bool
) -> None:
    config = api.get("gpu_config:get_gpu_config")(gb)
    longest = config.max_duration_with_lm if lm else config.max_duration_without_lm
    most = config.max_batch_size_with_lm if lm else config.max_batch_size_without_lm
    within, line = api.get("gpu_config:check_duration_limit")(seconds, config, lm)
    assert within is (seconds <= longest)
    assert line
    within, line = api.get("gpu_config:check_batch_size_limit")(batch, config, lm)
    assert within is (batch <= most)
    assert line
