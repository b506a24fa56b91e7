"""The runtime on the simulated MPS device: policy, limits, memory, songs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from acestep import device
from acestep.checkpoint.finding import find
from acestep.cli.devices import describe
from acestep.device import canonical, resolve, supports_float64
from acestep.engines.torch.loading import load_pipeline
from acestep.errors import DeviceError, RequestError
from acestep.gpu_config import get_gpu_config, get_gpu_memory_gb
from acestep.handler import AceStepHandler
from acestep.song.request import Request
from conformance import simulate


@pytest.fixture
def mac() -> Iterator[simulate.Simulation]:
    """A simulated Mac with 16 GiB of unified memory."""
    with simulate.mps(macos="15.5", memory_gb=16) as simulation:
        yield simulation


def test_policy(mac: simulate.Simulation) -> None:
    policy = resolve("auto")
    assert policy.name == "mps"
    assert policy.reason == "auto: Apple GPU through Metal"
    assert [policy.dtypes[name].name for name in device.COMPONENTS] == [
        "bfloat16",
        "bfloat16",
        "float32",
        "bfloat16",
    ]
    assert policy.lm_backend == "pt"
    assert policy.max_conv_output == 65536
    assert policy.unified_memory
    assert policy.is_accelerator
    assert not policy.has_flash_attention
    assert not supports_float64("mps")
    assert canonical("mps") == canonical(torch.ones(1, device="mps").device)
    assert resolve("MPS:0").name == "mps"
    with pytest.raises(DeviceError, match=r"the last one is 'mps:0'"):
        resolve("mps:1")
    with pytest.raises(DeviceError, match=r"available: mps, cpu"):
        resolve("cuda")
    with policy.autocast("dit"):
        assert (torch.ones(2, 2, device="mps") @ torch.ones(2, 2, device="mps")).dtype == (
            torch.bfloat16
        )


def test_an_old_macos_has_no_bfloat16() -> None:
    with simulate.mps(macos="13.6", memory_gb=16):
        policy = resolve("mps")
        assert {choice.name for choice in policy.dtypes.values()} == {"float32"}
        assert "macOS 14" in policy.dtypes["dit"].source
        with pytest.raises(RequestError, match="mps has no bfloat16 here"):
            resolve("mps", dtype="bfloat16")


def test_a_mac_counts_with_its_recommended_share(mac: simulate.Simulation) -> None:
    policy = resolve("mps")
    assert get_gpu_memory_gb(policy) == policy.total_memory == pytest.approx(32 / 3)
    config = get_gpu_config(policy=policy)
    assert config.tier == "tier4"
    assert not config.offload_to_cpu_default, "offloading gains nothing on unified memory"
    report = {entry["name"]: entry for entry in describe()["devices"]}
    assert report["mps"]["tier"] == "tier4"


def test_a_song_within_the_limits_and_equal_to_the_cpus(
    mac: simulate.Simulation, handler: AceStepHandler
) -> None:
    """2 s are beyond the longest convolution that MPS runs whole; the simulation refuses it."""
    ours = AceStepHandler()
    ours.load("demo", resolve("mps", dtype="float32"))
    request = Request("warm piano", (7,), "[verse]\nla", 2.0, steps=2)
    made = ours.generate(request)
    plain = handler.generate(request)
    assert torch.equal(made.tensors["pred_latents"], plain.tensors["pred_latents"])
    # The host convolves with channels last; test_mps_sim_tasks compares one layout bit by bit.
    torch.testing.assert_close(made.songs[0].audio, plain.songs[0].audio, atol=1e-5, rtol=0)
    assert made.peak_memory > 0
    latents = plain.tensors["pred_latents"].transpose(1, 2).to("mps")
    assert ours.pipeline is not None
    with pytest.raises(NotImplementedError, match="Output channels > 65536"):
        ours.pipeline.vae.decode(latents)


def test_every_parameter_lies_on_the_device(mac: simulate.Simulation) -> None:
    ours = AceStepHandler()
    ours.load("demo", resolve("mps"))
    assert ours.pipeline is not None
    for name, module in ours.pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
                assert ours._is_on_target_device(tensor, "mps"), f"{name}.{key}"
                assert not ours._is_on_target_device(tensor, "cpu"), f"{name}.{key}"
                assert not ours._is_on_target_device(tensor, "cuda"), f"{name}.{key}"
    before = ours.policy
    message, ok = ours.initialize_service(None, "demo", "mps", offload_to_cpu=True)
    assert not ok
    assert "offloading is pointless on mps" in message
    assert ours.policy is before


def held(simulation: simulate.Simulation) -> int:
    """Bytes that the simulated driver holds."""
    return int(torch.mps.driver_allocated_memory())


def test_the_memory_ratchet_is_prevented(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the allocator that keeps every freed block, songs of rising length must not pile up."""
    with simulate.mps(memory_gb=16, ratchet=True) as simulation:
        monkeypatch.setattr(device.policy, "MPS_CACHE_SLACK", 4 * 2**20)
        ours = AceStepHandler()
        ours.load("demo", resolve("mps", dtype="float32"))
        levels = []
        for length in range(4):
            request = Request("x", (1,), duration=0.6 + length / 10, steps=2)
            ours.generate(request)
            levels.append(held(simulation))
        assert max(levels) - min(levels) < 2**20

        monkeypatch.setattr(type(ours.policy), "flush", lambda self: None)
        ours.generate(Request("x", (1,), duration=1.2, steps=2))
        assert held(simulation) > levels[-1] + 2**20, "without flushing it grows: the defect shows"


def test_weights_go_straight_to_the_device(mac: simulate.Simulation) -> None:
    pipeline = load_pipeline(find("demo"), resolve("mps"))
    assert pipeline.transformer.proj_in_conv.weight.device.type == "mps"
    assert pipeline.vae.dtype == torch.float32
    assert pipeline.transformer.dtype == torch.bfloat16
