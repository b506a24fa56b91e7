"""The device policy: what it decides on this target, and what it can be asked."""

from __future__ import annotations

import pytest
import torch

from conformance.entrypoints import covers
from conformance.suite.support import Api, absent_device, backends
from conformance.targets import Target


@covers(
    "A2",
    "device.choosing:resolve",
    "device.presence:describe_devices",
    "device.dtypes:DtypeChoice.name",
    "device.dtypes:dtypes_of",
)
def test_policy_of_this_device(api: Api, target: Target) -> None:
    policy = api.get("device:resolve")(target.device, engine=target.engine)
    assert policy.device.type == target.device
    assert policy.total_memory > 0
    for choice in policy.dtypes.values():
        # float16 overflows to NaN in this model.
        assert choice.name in ("float32", "bfloat16"), api.spelled(choice.name)
        assert choice.reason
    here = {info.name: info.available for info in api.get("device:describe_devices")()}
    assert here[target.device]
    assert here["cpu"]
    limited = target.device == "mps" and target.engine == "torch"
    assert (policy.max_conv_output is not None) is limited, api.keyword("max_conv_output")


@covers(
    "S5",
    "device.policy:DevicePolicy.*",
    "device.memory:*",
    "device.kernels:*",
    "device.dtypes:supports_float64",
    "device.choosing:default_lm_backend",
)
def test_policy_answers(api: Api, target: Target) -> None:
    policy = api.get("device:resolve")(target.device, engine=target.engine)
    assert policy.name.startswith(target.device)
    assert policy.is_accelerator is (target.device != "cpu")
    assert policy.dtype == policy.dtype_of("dit")
    on_mlx = target.engine == "mlx"
    assert policy.on_mlx is on_mlx
    assert policy.engine_name == (target.name if on_mlx else "torch")
    assert policy.mlx_detail
    if on_mlx:
        assert policy.mlx_device
        assert api.get("device.memory:mlx_free_and_total")(policy.device)[1] > 0
    assert policy.lm_backend_problem("pt") is None
    assert policy.has_flash_attention is (target.device == "cuda" and not on_mlx)
    assert api.get("device.memory:free_and_total")(policy.device)[1] > 0
    assert 0 <= policy.free_memory <= policy.total_memory * 1.01
    counter = torch.zeros(1, device=policy.device)

    def step() -> None:
        counter.add_(1)

    policy.captured(step)()
    policy.captured(step, policy.recording_pool())()
    policy.synchronize()
    assert counter.item() >= 1
    assert policy.prefers_vllm is (target.device == "cuda")
    policy.flush()
    policy.between_steps()
    policy.after_request()
    assert policy.host_buffer(2, 3).shape == (2, 3)
    assert policy.records is (target.device == "cuda")
    assert policy.has_packed_attention(torch.float32) is False
    assert policy.has_tile_kernels(torch.float32) is False
    assert policy.has_language_kernels(torch.float32) is False
    ahead = policy.launches_ahead
    assert target.device == "cuda" or ahead is False
    assert policy.overlaps is (target.device == "cuda" and not on_mlx)
    with policy.own_stream():
        assert counter.add(1).item() > counter.item()
    policy.reset_peak_memory()
    with policy.current(), policy.autocast(), policy.full_precision(), policy.fixed_shapes():
        assert policy.with_dtype("auto") is policy
    assert policy.peak_memory() >= 0
    assert policy.generator(7).device.type == "cpu", api.decided_at(lambda: policy.generator(7))
    assert policy.with_dtype("float32").dtype == torch.float32
    assert policy.for_weights("F32") is policy
    assert policy.packed_rows >= 0
    trained = policy.for_training()
    assert trained.dtype == (policy.dtype if target.device == "cuda" else torch.float32)
    allowed = api.get("device:supports_float64")(policy.device)
    assert allowed is (target.device != "mps")
    backend, why = api.get("device:default_lm_backend")(policy.device, policy.engine)
    assert backend in backends(target)
    assert why


@covers("device.policy:DevicePolicy.autocast", "device.dtypes:has_bfloat16")
def test_autocast_is_of_the_device(api: Api, target: Target) -> None:
    policy = api.get("device:resolve")(target.device)
    kinds = ("cpu", "cuda", "mps")
    for wanted in (policy, policy.with_dtype("bfloat16")):
        with wanted.autocast("dit"):
            on = {kind for kind in kinds if torch.is_autocast_enabled(kind)}
        assert on == (set() if wanted.dtype == torch.float32 else {target.device})


@covers("A2", "device.choosing:resolve", "device.presence:*")
@pytest.mark.names_cuda("the case itself asks for a device that is absent")
def test_nothing_is_silently_replaced(
    api: Api, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, error = api.get("device:resolve"), api.get("errors:DeviceError")
    for asked in (absent_device(target), "tpu", "cpu:x", f"{target.device}:99"):
        if asked == "cpu:99":
            continue
        told = ""
        try:
            got = f"{resolve(asked).name}; {api.decided_at(lambda: resolve(asked))}"  # noqa: B023
        except error as refusal:
            got, told = "", str(refusal)
        assert not got, f"asked for {asked}, which is absent, and got {got}"
        assert len(told.splitlines()) == 1
        assert "cpu" in told
    monkeypatch.setenv("ACESTEP_DEVICE", target.device)
    assert resolve("auto").device.type == target.device


@covers("device.engines:*", "device.choosing:with_engine", "device.bits:mlx_problem")
def test_an_engine_is_used_or_refused(api: Api, target: Target) -> None:
    """By name it is what was asked for, with weights that it can hold; else one line says why."""
    resolve, error = api.get("device:resolve"), api.get("errors:RequestError")
    policy = resolve(target.device, engine=target.engine)
    assert policy.engine == target.engine
    assert policy.engine_reason
    torch_too = api.get("device:with_engine")(policy, "torch")
    assert (torch_too.engine, torch_too.device) == ("torch", policy.device)
    choose = api.get("device.engines:choose")
    assert choose("auto", policy.device)[0] in ("torch", "mlx")
    asked = {"jax": policy.device}
    if api.get("device.engines:problem")(policy.device) is not None:
        asked["mlx"] = policy.device
    for name, device in asked.items():
        with pytest.raises(error) as refused:
            resolve(device, engine=name)
        assert name in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
    if target.engine == "mlx":
        api.get("device.engines:mlx_device")(policy.device)
    api.get("device.engines:part")(policy.device)
    assert api.get("device.engines:installed")("no_such_package") is False
    told = api.get("device.bits:mlx_problem")
    assert told("int8") is None
    assert "MLX" in told("fp8")


@covers("engines.torch.engine:out_of_memory", "diffusion.denoise:check_latents")
def test_what_a_device_can_do_wrong(api: Api, target: Target) -> None:
    """Out of memory and NaN are told in one line that names the device."""
    policy = api.get("device:resolve")(target.device)
    line = api.get("engines.torch.engine:out_of_memory")(policy, MemoryError("no more\nat all"))
    assert policy.name in line
    assert len(line.splitlines()) == 1
    error = api.get("errors:GenerationError")
    for bad in (torch.zeros(1, 4, 4), torch.full((1, 4, 4), float("nan"))):
        with pytest.raises(error, match=policy.name):
            api.get("diffusion.denoise:check_latents")(bad.to(target.device), policy)
