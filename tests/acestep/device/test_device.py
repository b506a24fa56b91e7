"""Tests of the device policy."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep import device
from acestep.device import DEVICE_CHOICES, canonical, resolve, supports_float64
from acestep.errors import AceStepError, DeviceError, RequestError


def test_choices_are_the_public_ones() -> None:
    assert DEVICE_CHOICES == ("auto", "cuda", "mps", "cpu")


@pytest.mark.parametrize("choice", ["cpu", "CPU", " cpu ", torch.device("cpu"), "cpu:0"])
def test_cpu_in_any_spelling(choice: str | torch.device) -> None:
    policy = resolve(choice)
    assert policy.device == torch.device("cpu")
    assert policy.dtype == torch.float32
    assert policy.lm_backend == "pt"
    assert policy.max_conv_output is None
    assert policy.unified_memory
    assert not policy.is_accelerator
    assert 0 < policy.free_memory <= policy.total_memory


def test_explicit_cpu_asks_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an accelerator was asked")

    for name in ("is_available", "current_accelerator", "device_count"):
        monkeypatch.setattr(torch.accelerator, name, refuse)
    monkeypatch.setattr(torch.cuda, "is_available", refuse)
    monkeypatch.setattr(torch.backends.mps, "is_available", refuse)
    assert resolve("cpu").name == "cpu"
    with pytest.raises(AssertionError):
        resolve("auto")


def test_environment_decides_only_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_DEVICE", "nonsense")
    assert resolve("cpu").name == "cpu"
    for choice in ("auto", None, ""):
        with pytest.raises(DeviceError, match="nonsense"):
            resolve(choice)
    monkeypatch.setenv("ACESTEP_DEVICE", "CPU")
    assert resolve("auto").reason == "ACESTEP_DEVICE"


@pytest.mark.parametrize(
    "choice", ["tpu", "cuda:x", "cuda:", "cuda:\u0660", "cpu:1:2", "auto:1", "meta", "xpu"]
)
def test_unknown_devices_are_refused_by_name(choice: str) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve(choice)
    assert "cpu" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_devices_are_refused_with_what_is_here() -> None:
    absent = [info for info in device.describe_devices() if not info.available]
    assert absent, "this test needs a machine that lacks a device"
    for info in absent:
        with pytest.raises(DeviceError, match=r"not available here: .*; available: .*cpu"):
            resolve(info.name)


@given(st.text(max_size=12))
def test_any_text_gives_a_policy_or_one_line(text: str) -> None:
    try:
        policy = resolve(text)
    except AceStepError as error:
        assert isinstance(error, DeviceError)
        assert text.strip().lower() in str(error)
    else:
        assert policy.device.type in DEVICE_CHOICES


def test_policy_is_immutable() -> None:
    policy = resolve("cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.device = torch.device("meta")  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.dtypes["dit"] = policy.dtypes["vae"]  # type: ignore[index]


def test_every_component_has_a_dtype_with_reason_and_source() -> None:
    policy = resolve("cpu")
    assert set(policy.dtypes) == {"dit", "text_encoder", "vae", "lm"}
    for choice in policy.dtypes.values():
        assert choice.dtype != torch.float16
        assert choice.reason
        assert choice.source
        assert choice.name == "float32"


def test_dtype_override() -> None:
    policy = resolve("cpu", dtype="bfloat16")
    assert {choice.dtype for choice in policy.dtypes.values()} == {torch.bfloat16}
    assert resolve("cpu", dtype="auto").dtype == torch.float32
    with pytest.raises(RequestError, match="unknown dtype 'int4'"):
        resolve("cpu", dtype="int4")


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


def test_canonical() -> None:
    assert canonical("CPU") == ("cpu", 0)
    assert canonical(torch.device("mps")) == canonical("mps:0") == ("mps", 0)
    assert canonical("cuda:3") == ("cuda", 3)
    assert canonical("cuda")[0] == "cuda"
    with pytest.raises(DeviceError):
        canonical("banana")


def test_float64_is_missing_only_on_mps() -> None:
    assert supports_float64("cpu")
    assert supports_float64("cuda:0")
    assert not supports_float64(torch.device("mps"))


def test_default_backend_is_pt_off_cuda() -> None:
    for name in ("cpu", "mps"):
        assert device.default_lm_backend(name) == ("pt", "vLLM runs on CUDA only")


@pytest.mark.parametrize(("text", "expected"), [("", True), ("0", False), (" 1 ", True)])
def test_the_layout_of_convolutions_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: bool
) -> None:
    monkeypatch.setenv("ACESTEP_CHANNELS_LAST", text)
    assert resolve("cpu").channels_last is expected


def test_an_unknown_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_CHANNELS_LAST", "yes")
    with pytest.raises(RequestError, match="ACESTEP_CHANNELS_LAST is 'yes'; expected 0 or 1"):
        resolve("cpu")
