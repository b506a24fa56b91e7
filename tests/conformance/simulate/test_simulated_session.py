"""Entering and leaving the simulation, what torch says inside, memory, randomness and autocast."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch

from conformance import simulate
from conformance.simulate import operators, releases

DEVICE = "mps"
OWNERS = (
    torch,
    torch._C,
    torch.mps,
    torch.backends.mps,
    torch.accelerator,
    torch.cuda,
    torch.version,
    torch.autograd,
    torch.autograd.graph,
    torch.utils.dlpack,
    torch.Tensor,
    torch.UntypedStorage,
    torch.Generator,
    threading.Thread,
)


def attributes() -> dict[tuple[int, str], object]:
    """Every attribute of everything the simulation touches."""
    return {
        (index, name): value
        for index, owner in enumerate(OWNERS)
        for name, value in vars(owner).items()
        if not isinstance(value, ModuleType)
    }


def test_leaving_restores_torch_exactly() -> None:
    torch.zeros(1).sum().item()
    before = attributes()
    with simulate.mps() as sim:
        assert torch.backends.mps.is_available()
        assert attributes() != before
        assert simulate.active() is sim
        x = torch.ones(2, device=DEVICE, requires_grad=True)
        x.sum().backward()
    assert simulate.active() is None
    after = attributes()
    assert after.keys() == before.keys()
    assert [key for key in before if after[key] is not before[key]] == []
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch._C._len_torch_function_stack() == 0
    assert not torch.backends.mps.is_available()
    assert x.is_cpu


def test_leaving_after_an_exception_restores_torch_too() -> None:
    before = attributes()
    with pytest.raises(ZeroDivisionError), simulate.mps():
        torch.ones(1 // 0, device=DEVICE)
    after = attributes()
    assert all(value is after[key] for key, value in before.items())
    with pytest.raises(RuntimeError, match="without MPS backend"):
        torch.mps.empty_cache()


def test_a_failure_while_entering_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = attributes()
    with monkeypatch.context() as patch:
        patch.setattr("conformance.simulate.surface.forget_answers", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            simulate.mps().__enter__()
    simulate.active()
    after = attributes()
    assert all(value is after[key] for key, value in before.items())


def test_one_at_a_time(sim: simulate.Simulation) -> None:
    with pytest.raises(RuntimeError, match="already active"), simulate.mps():
        pass
    assert torch.ones(1, device=DEVICE).is_mps


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"macos": "Sonoma"}, "macos='Sonoma' is not a version"),
        ({"macos": "15.x"}, "is not a version"),
        ({"memory_gb": 0}, "memory_gb=0 must be above zero"),
        ({"torch": "2.8"}, "torch='2.8': expected one of 2.9, 2.10, 2.11, 2.12"),
    ],
)
def test_values_that_name_no_mac(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        simulate.mps(**options)  # type: ignore[arg-type]


def test_what_torch_says_of_the_machine() -> None:
    with simulate.mps(macos="14.4", memory_gb=64):
        assert torch.backends.mps.is_built()
        assert torch.backends.mps.is_macos_or_newer(14, 4)
        assert not torch.backends.mps.is_macos_or_newer(15, 0)
        assert torch.backends.mps.is_macos13_or_newer()
        assert "mps-sim" in torch.backends.mps.get_name()
        assert torch.backends.mps.get_core_count() > 0
        assert torch.mps.device_count() == 1
        assert torch.mps.is_available()
        assert torch.mps.recommended_max_memory() == 48 * 1024**3
        torch.mps.synchronize()
        assert torch.accelerator.is_available()
        assert torch.accelerator.current_accelerator() == torch.device(DEVICE)
        assert torch.accelerator.device_count() == 1
        assert torch.accelerator.current_device_index() == 0
        torch.accelerator.set_device_index(0)
        torch.accelerator.synchronize()
        with torch.accelerator.device_index(0):
            assert torch.accelerator.current_stream().query()
        assert torch.get_device_module().__name__ == "torch.mps"


def test_cuda_is_absent_in_torchs_words(sim: simulate.Simulation) -> None:
    assert not torch.cuda.is_available()
    assert torch.cuda.device_count() == 0
    assert torch.version.cuda is None
    for call in (
        lambda: torch.ones(1).cuda(),
        lambda: torch.ones(1, device=DEVICE).cuda(),
        lambda: torch.ones(1).to("cuda"),
        lambda: torch.ones(1, device="cuda"),
        lambda: torch.nn.Linear(1, 1).to(DEVICE).cuda(),
        torch.cuda.init,
    ):
        with pytest.raises(AssertionError, match="Torch not compiled with CUDA enabled"):
            call()


def test_another_index_is_no_device(sim: simulate.Simulation) -> None:
    with pytest.raises(RuntimeError, match="index must be 0"):
        torch.ones(1, device="mps:1")


def test_memory_follows_live_tensors() -> None:
    with simulate.mps(memory_gb=1) as sim:
        x = torch.zeros(1024, 256, device=DEVICE)
        assert torch.mps.current_allocated_memory() == 2**20
        view = x[:10]
        y = x + 1
        assert torch.accelerator.memory_allocated() == 2**21
        del x, y
        gc.collect()
        assert torch.mps.current_allocated_memory() == 2**20
        del view
        assert torch.mps.current_allocated_memory() == 0
        assert torch.mps.driver_allocated_memory() == 0
        assert torch.accelerator.max_memory_allocated() == 2**21
        torch.accelerator.reset_peak_memory_stats()
        assert torch.accelerator.max_memory_allocated() == 0
        free, total = torch.accelerator.get_memory_info()
        assert free == total == torch.mps.recommended_max_memory()
        z = torch.zeros(4, device=DEVICE)
        z.resize_(2**18)
        assert sim.core.ledger.allocated == 2**20


def test_the_ratchet_holds_freed_blocks_until_the_cache_is_emptied() -> None:
    with simulate.mps(ratchet=True):
        for rows in range(1, 5):
            torch.zeros(rows, 1024, device=DEVICE)
        assert torch.mps.current_allocated_memory() == 0
        assert torch.mps.driver_allocated_memory() == 4096 * (1 + 2 + 3 + 4)
        again = torch.zeros(4, 1024, device=DEVICE)
        assert torch.mps.driver_allocated_memory() == 4096 * (1 + 2 + 3 + 4)
        torch.mps.empty_cache()
        assert torch.mps.driver_allocated_memory() == again.nbytes


def test_out_of_memory_at_the_watermark(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**18
    with simulate.mps(memory_gb=0.004, ratchet=True):
        torch.zeros(size + 256, device=DEVICE)
        held = [torch.zeros(size, device=DEVICE) for _ in range(4)]
        with pytest.raises(RuntimeError, match="MPS backend out of memory") as caught:
            held.append(torch.zeros(size, device=DEVICE))
        assert "MPS allocated: 4.00 MiB" in str(caught.value)
        assert "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0" in str(caught.value)
        torch.mps.set_per_process_memory_fraction(0.5)
        held.clear()
        torch.mps.empty_cache()
        held = [torch.zeros(size, device=DEVICE) for _ in range(2)]
        with pytest.raises(RuntimeError, match="out of memory"):
            torch.zeros(size, device=DEVICE)
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.0")
    with simulate.mps(memory_gb=0.004):
        held = [torch.zeros(size, device=DEVICE) for _ in range(6)]
        assert all(tensor.is_mps for tensor in held)
        with pytest.raises(RuntimeError, match=r"Invalid buffer size: 2\.12 MiB"):
            torch.zeros(2 * size + 2**15, device=DEVICE)


def test_random_numbers_are_the_devices_own(sim: simulate.Simulation) -> None:
    torch.manual_seed(3)
    first = torch.randn(4, device=DEVICE)
    host = torch.randn(4)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(4), host)
    assert torch.equal(torch.randn(4, device=DEVICE), first)
    assert not torch.equal(first.cpu(), host)
    state = torch.mps.get_rng_state()
    one = torch.nn.functional.dropout(torch.ones(64, device=DEVICE))
    torch.mps.set_rng_state(state)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(64, device=DEVICE)), one)
    torch.mps.seed()
    assert not torch.equal(torch.nn.functional.dropout(torch.ones(64, device=DEVICE)), one)


def test_generators(sim: simulate.Simulation) -> None:
    generator = torch.Generator(DEVICE)
    assert isinstance(generator, torch.Generator)
    assert isinstance(torch.Generator(), torch.Generator)
    assert issubclass(type(generator), torch.Generator)
    assert generator.device == torch.device("mps:0")
    assert torch.Generator("cpu").device == torch.device("cpu")
    assert generator.manual_seed(5) is generator
    assert generator.initial_seed() == 5
    draws = [torch.rand(3, device=DEVICE, generator=generator) for _ in range(2)]
    generator.manual_seed(5)
    assert torch.equal(torch.rand(3, device=DEVICE, generator=generator), draws[0])
    state = generator.get_state()
    assert torch.equal(torch.rand(3, device=DEVICE, generator=generator), draws[1])
    generator.set_state(state)
    assert torch.equal(torch.rand(3, device=DEVICE, generator=generator), draws[1])
    assert generator.seed() == generator.initial_seed()
    assert torch.randperm(4, device=DEVICE, generator=generator).is_mps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(sim: simulate.Simulation, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4).to(DEVICE)
    x = torch.randn(2, 4, device=DEVICE)
    with torch.autocast(DEVICE, dtype=dtype):
        y = layer(x)
        assert y.dtype is dtype
        assert torch.softmax(y, -1).dtype is torch.float32
        assert torch.stack([y, y]).dtype is dtype
        assert (torch.ones(2, 4) @ torch.ones(4, 2)).dtype is torch.float32
        y.sum().backward()
    assert layer(x).dtype is torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype is torch.float32
    assert torch.get_autocast_dtype("cpu") is torch.bfloat16
    with pytest.warns(UserWarning, match="[Aa]utocast"), torch.autocast(DEVICE, torch.float32):
        assert layer(x).dtype is torch.float32


def test_events_and_streams(sim: simulate.Simulation) -> None:
    first = torch.mps.event.Event(enable_timing=True)
    last = torch.mps.event.Event(enable_timing=True)
    for event in (first, last):
        event.record()
        event.wait()
        event.synchronize()
        assert event.query()
    assert first.elapsed_time(last) >= 0
    start, end = (torch.Event(device=DEVICE, enable_timing=True) for _ in range(2))
    start.record()
    stream = torch.Stream(DEVICE)
    assert stream == torch.accelerator.current_stream()
    assert hash(stream) == hash(torch.device("mps:0"))
    with stream:
        stream.record_event(end)
    stream.wait_event(end)
    stream.wait_stream(torch.Stream())
    stream.synchronize()
    end.wait()
    end.synchronize()
    assert end.query()
    assert start.elapsed_time(end) >= 0
    assert isinstance(start, torch.Event)
    assert isinstance(stream, torch.Stream)
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        torch.Event().elapsed_time(end)
    torch.accelerator.set_stream(stream)


def test_profilers_and_shaders_say_that_they_do_nothing(sim: simulate.Simulation) -> None:
    with (
        pytest.warns(simulate.SimulationWarning, match="no GPU to trace"),
        torch.mps.profiler.profile(),
    ):
        torch.ones(1, device=DEVICE)
    assert not torch.mps.profiler.is_capturing_metal()
    assert not torch.mps.profiler.is_metal_capture_enabled()
    with pytest.raises(RuntimeError, match="Metal source cannot be compiled"):
        torch.mps.compile_shader("kernel void f() {}")


def test_a_thread_from_before_can_join_in() -> None:
    go, done = threading.Event(), threading.Event()
    seen: list[torch.Tensor] = []
    context: list[simulate.Simulation] = []

    def work() -> None:
        go.wait()
        with context[0].on_this_thread():
            seen.append(torch.ones(1).to(DEVICE) + 1)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    with simulate.mps() as sim:
        context.append(sim)
        go.set()
        assert done.wait(30)
        assert seen[0].is_mps
    thread.join()


def test_the_package_needs_neither_pytest_nor_the_runtime() -> None:
    code = "import sys, conformance.simulate; print({'pytest', 'acestep'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_older_torch_lacks_what_came_later() -> None:
    """However often it is asked for; what that release has runs."""
    with simulate.mps(torch="2.11", fallback=False):
        x = torch.eye(2, device=DEVICE)
        for _ in range(3):
            with pytest.raises(NotImplementedError, match="aten::linalg_qr"):
                torch.linalg.qr(x)
            assert (x @ x).is_mps
    for release, lacking in (("2.9", True), ("2.10", False)):
        with simulate.mps(torch=release, fallback=False):
            factors = torch.linalg.lu_factor(torch.eye(2, device=DEVICE))
            refused = pytest.raises(NotImplementedError, match="aten::linalg_lu_solve")
            with refused if lacking else nullcontext():
                torch.linalg.lu_solve(*factors, torch.ones(2, 1, device=DEVICE))
    with simulate.mps(torch="2.12", fallback=False):
        x = torch.eye(2, device=DEVICE)
        torch.linalg.qr(x)
        with pytest.raises(NotImplementedError, match="aten::lcm"):
            torch.lcm(x.int(), x.int())
    with simulate.mps(torch="2.11", fallback=True) as sim:
        x = torch.eye(2, device=DEVICE)
        with pytest.warns(UserWarning, match="fall back"):
            torch.linalg.qr(x)
        assert sim.recorder.fallbacks


def test_the_installed_torch_has_what_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of releases says of each operator that MPS has it by now."""
    rows = operators.read_tables(operators._text())
    here = releases._numbers(torch.__version__)
    for release, names in releases.ARRIVED.items():
        for name in names if releases._numbers(release) <= here else ():
            listed = any(row["dense"] for key, row in rows.items() if key.split(".")[0] == name)
            assert listed or operators._registered_in_python(name), name
    monkeypatch.setattr(releases, "version", lambda _: "2.11.1")
    with pytest.raises(ValueError, match="is newer than the installed"):
        releases.lacks("2.12")
