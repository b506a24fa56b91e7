"""Which GPUs get which kernels."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from acestep.device import DevicePolicy, resolve

HALF = (torch.bfloat16, torch.float16)


def gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None = None
) -> DevicePolicy:
    """The policy of a GPU of some capability, in a PyTorch for CUDA or for ROCm."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    # conformance: ignore[DEV101] a policy about a GPU that need not be there
    return dataclasses.replace(resolve("cpu"), device=torch.device("cuda"))


@pytest.mark.parametrize(
    ("capability", "packed", "tiles"),
    [((7, 5), False, False), ((8, 0), True, False), ((9, 0), True, True), ((10, 0), True, False)],
)
def test_kernels_follow_the_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], packed: bool, tiles: bool
) -> None:
    policy = gpu(monkeypatch, capability)
    has_triton = importlib.util.find_spec("triton") is not None
    for dtype in HALF:
        assert policy.has_packed_attention(dtype) is packed
        assert policy.has_tile_kernels(dtype) is (tiles and has_triton)
        assert policy.has_language_kernels(dtype) is (tiles and has_triton)
    assert policy.launches_ahead is tiles
    assert not policy.has_language_kernels(torch.float32)
    assert not policy.has_packed_attention(torch.float32)
    assert not policy.has_tile_kernels(torch.float32)
    monkeypatch.setenv("ACESTEP_LANGUAGE_KERNELS", "0")
    assert not policy.has_language_kernels(torch.bfloat16), "switched off"


@pytest.mark.parametrize("capability", [(9, 0), (9, 4), (9, 5), (11, 0)])
def test_a_gpu_of_amd_is_no_hopper(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    """A PyTorch for ROCm calls it cuda, and its number would pass: an MI300 is 9.4."""
    policy = gpu(monkeypatch, capability, hip="6.4.43482")
    for dtype in HALF:
        assert not policy.has_packed_attention(dtype)
        assert not policy.has_tile_kernels(dtype)
        assert not policy.has_language_kernels(dtype)
    assert not policy.launches_ahead


def test_the_host_has_none_of_them_and_records_nothing() -> None:
    policy = resolve("cpu")
    for dtype in HALF:
        assert not policy.has_packed_attention(dtype)
        assert not policy.has_tile_kernels(dtype)
    ran: list[int] = []

    def step() -> None:
        ran.append(1)

    assert policy.recording_pool() is None
    assert policy.captured(step) is step
    assert not ran
