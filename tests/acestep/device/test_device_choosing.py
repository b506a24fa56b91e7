"""Choosing a device: every spelling, every refusal, and what follows from the choice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep import device
from acestep.device import DEVICE_CHOICES, resolve
from acestep.errors import AceStepError, DeviceError, RequestError


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
