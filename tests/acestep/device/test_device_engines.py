"""Which library computes: chosen by the machine, asked for by name, or refused in one line."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from acestep.cli.devices import describe
from acestep.cli.train import _check_engine
from acestep.device import GIB, engines, memory, resolve, with_engine
from acestep.errors import DeviceError, RequestError
from acestep.handler import AceStepHandler

CPU, MPS, CUDA = torch.device("cpu"), torch.device("mps"), torch.device("cuda", 1)


def test_a_mac_with_mlx_computes_with_it_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("mlx.core")
    assert engines.choose("auto", CPU)[0] == engines.choose(None, CUDA)[0] == "torch"
    assert engines.choose("auto", MPS) == ("torch", "auto: this is no Apple silicon")
    monkeypatch.setattr("acestep.device.engines.sys.platform", "darwin")
    monkeypatch.setattr("acestep.device.engines.platform.machine", lambda: "arm64")
    monkeypatch.setattr(core.metal, "is_available", lambda: True)
    assert engines.choose("auto", MPS) == ("mlx", "auto: Apple silicon with MLX installed")
    assert engines.choose("", CPU)[0] == "torch"
    assert engines.choose("torch", MPS) == ("torch", "asked for")
    monkeypatch.setattr(core.metal, "is_available", lambda: False)
    assert engines.choose("auto", MPS)[0] == "torch"
    monkeypatch.setitem(sys.modules, "mlx", None)
    name, reason = engines.choose("auto", MPS)
    assert name == "torch"
    assert "pip install 'acestep[mlx]'" in reason


def test_what_is_asked_for_is_used_or_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlx.core")
    assert engines.choose(" MLX ", CPU) == ("mlx", "asked for")
    for device, missing in ((MPS, "no Metal"), (CUDA, "no CUDA")):
        with pytest.raises(RequestError, match=f"'mlx' cannot be used on .*{missing}"):
            engines.choose("mlx", device)
    with pytest.raises(RequestError, match="unknown engine 'jax'; choose from auto, torch, mlx"):
        resolve("cpu", engine="jax")
    monkeypatch.setenv("ACESTEP_ENGINE", "mlx")
    assert engines.choose("auto", CPU) == ("mlx", "ACESTEP_ENGINE")
    assert resolve("cpu").engine == "torch"
    with pytest.raises(RequestError, match="unknown engine '3'"):
        engines.choose(3, CPU)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="leave --engine out"):
        _check_engine(Namespace(engine="mlx", quiet=False))
    _check_engine(Namespace(quiet=True))
    assert not capsys.readouterr().err
    _check_engine(Namespace(quiet=False))
    assert "ACESTEP_ENGINE=mlx is for songs" in capsys.readouterr().err
    with pytest.raises(
        DeviceError, match=r"which the engine 'mlx' needs too; of MLX: this MLX has no"
    ):
        resolve("cuda", engine="auto")
    monkeypatch.setenv("ACESTEP_ENGINE", "jax")
    with pytest.raises(RequestError, match="unknown engine 'jax' in ACESTEP_ENGINE; choose from"):
        engines.choose(None, CPU)
    with pytest.raises(RequestError, match="unknown engine 'jax' in ACESTEP_ENGINE"):
        describe()
    for package in ("mlx", "mlx_lm"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            assert "pip install 'acestep[mlx]'" in str(engines.problem(CPU, "mlx_lm"))
    # A build for CUDA that does not find CUDA's libraries is there and of no use.
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(RequestError, match=r"cannot be loaded .*; install it anew") as refused:
        engines.choose("mlx", CPU)
    assert len(str(refused.value).splitlines()) == 1


def test_a_policy_of_mlx_has_its_figures() -> None:
    core = pytest.importorskip("mlx.core")
    policy = resolve("cpu", engine="mlx", quantization="8")
    assert (policy.engine, policy.engine_name, policy.quantization) == ("mlx", "mlx-cpu", "int8")
    assert (policy.lm_backend, policy.mlx_device) == ("mlx", core.Device(core.cpu, 0))
    assert policy.unified_memory
    assert not policy.has_flash_attention
    assert policy.for_weights("BF16") is policy
    assert 0 < policy.free_memory <= policy.total_memory
    with pytest.raises(RequestError, match="MLX holds weights as int8 or int4"):
        resolve("cpu", engine="mlx", quantization="fp8")
    policy.reset_peak_memory()
    held = core.zeros((1024, 1024)) + 1
    core.eval(held)
    policy.synchronize()
    assert policy.peak_memory() * GIB >= held.nbytes
    del held
    policy.flush()
    assert core.get_cache_memory() == 0
    policy.between_steps()
    other = with_engine(policy, "torch")
    assert (other.engine_name, other.quantization, other.dtypes) == (
        "torch", "int8", policy.dtypes,
    )  # fmt: skip
    assert with_engine(other, "torch") is other
    assert "mlx" not in (other.lm_backend, other.engine)


def test_a_mac_has_what_metal_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("mlx.core")
    info = {"max_recommended_working_set_size": 5 * GIB, "memory_size": 8 * GIB}
    monkeypatch.setattr(core, "device_info", lambda _: info)
    free, total = memory.mlx_free_and_total(MPS)
    assert total == 5
    assert 0 < free <= 5


def test_acestep_without_mlx_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe()["devices"][-1]
    for name in ("mlx", "mlx.core", "mlx_lm"):
        monkeypatch.setitem(sys.modules, name, None)
    without = describe()["devices"][-1]
    changing = {"free_memory_gib": 0, "mlx": ""}
    assert {**without, **changing} == {**before, **changing}
    assert "pip install 'acestep[mlx]'" in without["mlx"]
    message, ok = AceStepHandler().initialize_service(None, "demo", "cpu", engine="mlx")
    assert (ok, "pip install 'acestep[mlx]'" in message) == (False, True)


def test_nothing_of_mlx_is_imported_on_the_way_to_the_command_line() -> None:
    code = (
        "import sys; from acestep.acestep_v15_pipeline import build_parser; build_parser();"
        "assert not {'mlx', 'mlx_lm', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
