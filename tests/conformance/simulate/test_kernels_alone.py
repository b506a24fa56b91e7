"""Calls whose kernels run by themselves, signs without a mode, and what is counted later."""

from __future__ import annotations

import io
import signal
import weakref
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from conformance import simulate
from conformance.simulate import memory, mps
from conformance.simulate.internals import function_modes
from conformance.simulate.session import Simulation


def test_a_sign_asks_for_no_mode_and_tells_others_its_method() -> None:
    """Who listens hears `Tensor.add`, as ever; and the sign is torch's own again afterwards."""
    heard = []

    class Listener(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            heard.append(func)
            return func(*args, **(kwargs or {}))

    plain = torch.Tensor.__add__
    with simulate.mps(fallback=False) as sim:
        x = torch.arange(3.0, device="mps")
        for _ in range(3):
            assert (1 + x + x).cpu().tolist() == [1, 3, 5]
        assert sim.recorder.operators["aten::add.Tensor"] == 6
        with Listener():
            x + x
        assert heard == [torch.Tensor.add]
        whole = torch.arange(3, device="mps")
        for _ in range(3):
            whole / 2
        torch.set_default_dtype(torch.float64)
        try:
            for tensor, other in ((x, object()), (x, "text"), (whole, 2)):
                with pytest.raises(TypeError, match="unsupported operand"):
                    tensor / other
        finally:
            torch.set_default_dtype(torch.float32)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        assert (torch.ones(3) + torch.ones(3)).device.type == "cpu"
    assert torch.Tensor.__add__ is plain


def test_a_kernel_alone_sees_what_is_resolved_above_it(sim: Simulation) -> None:
    """A sign that a view carries, a transform of functorch, a type that the device lacks."""
    x = torch.arange(1.0, 4.0, device="mps")
    for _ in range(3):
        x * 2
    assert [alone for _, alone in sim.core.calls[torch.Tensor.mul].values()] == [True]
    numbers = torch.complex(x, x)
    negated = numbers.conj().imag
    assert negated.is_neg()
    for _ in range(3):
        x + 0.5
        assert (negated * 2).cpu().tolist() == [-2, -4, -6]
        assert (negated + 0.5).cpu().tolist() == [-0.5, -1.5, -2.5]
    w = torch.ones(3, device="mps")

    def spread(row: torch.Tensor) -> torch.Tensor:
        return (w * 2).add_(row)

    made = torch.func.jacrev(spread)(x)
    assert made.cpu().tolist() == torch.eye(3).tolist()


def test_views_and_gradients_are_kept_by_known_calls(sim: Simulation) -> None:
    """What is a view of what, and the versions that autograd compares, are as they were."""
    x = torch.ones(4, device="mps")
    for _ in range(3):
        row = x.view(2, 2)
        assert row._base is x
        x.add_(1)
        assert row._version == x._version
    w = torch.ones(3, device="mps", requires_grad=True)
    for _ in range(3):
        y = w * w
        y.exp().sum().backward()
        assert y.grad_fn is not None
    kept = w.exp()
    kept.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_what_is_counted_later_is_counted(sim: Simulation) -> None:
    """Small results lie dead for a while, and neither sizes nor peaks tell."""
    x = torch.ones(1024, device="mps")
    torch.zeros(2**20, device="mps")
    for _ in range(3):
        x + x
    held = torch.mps.current_allocated_memory()
    storage = (x + x).untyped_storage()
    assert torch.mps.current_allocated_memory() == held + 4096
    assert x.set_(storage).is_mps
    x = torch.ones(1024, device="mps")
    del storage
    kept = [x + x for _ in range(100)]
    assert torch.mps.current_allocated_memory() == held + 100 * 4096
    alive = weakref.ref(kept[1])
    kept.clear()
    assert alive() is None
    assert torch.mps.current_allocated_memory() == held
    torch.accelerator.reset_peak_memory_stats()
    for _ in range(100):
        x + x
    kept = [x + x for _ in range(50)]
    for _ in range(20):
        x + x
    assert torch.accelerator.max_memory_allocated() == held + 51 * 4096


def test_a_fresh_storage_that_grows_must_fit(sim: Simulation) -> None:
    """Its size of before was never counted."""
    x = torch.ones(4, device="mps")
    for _ in range(3):
        fresh = x + x
    held = torch.mps.current_allocated_memory()
    fresh.resize_(1024)
    assert torch.mps.current_allocated_memory() == held - 16 + 4096
    fresh = x + x
    torch.mps.set_per_process_memory_fraction(1e-6)
    with pytest.raises(RuntimeError, match="out of memory"):
        fresh.resize_(2**16)


def test_only_a_little_lies_dead(sim: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many results die, the table stays short."""
    monkeypatch.setattr(memory, "_MOST_FRESH", 4096)
    x = torch.ones(4, device="mps")
    for _ in range(1000):
        x + x
    assert len(sim.core.ledger.blocks) < 4096 / 256 + 2


def test_a_sign_of_a_number_is_read_with_it() -> None:
    """Of views that negate or conjugate, of the device's own and of loaded ones."""
    with mps():
        ones = torch.ones(3, device="mps")
        for _ in range(4):
            assert (ones + ones).tolist() == [2, 2, 2]
        negated = torch.complex(ones, ones).conj().imag
        assert [negated[0].item(), float(negated[0]), int(negated[0])] == [-1, -1, -1]
        assert torch.tensor([1 + 2j], device="mps").conj().item() == 1 - 2j
    file, host = io.BytesIO(), torch.ones(3)
    torch.save(torch.complex(host, host).conj().imag, file)
    file.seek(0)
    with mps():
        ones = torch.ones(3, device="mps")
        for _ in range(4):
            assert (ones + ones).tolist() == [2, 2, 2]
        assert (ones + torch.load(file, map_location="mps")).tolist() == [0, 0, 0]


def test_signs_by_their_names_and_in_vain() -> None:
    with mps():
        ones = torch.ones(3, device="mps")
        for _ in range(4):
            assert (ones + ones).tolist() == [2, 2, 2]
        assert ones.__add__(other=2).tolist() == [3, 3, 3]
        assert ones.__sub__(ones, alpha=2).tolist() == [-1, -1, -1]
        with pytest.raises(TypeError):
            ones + "one"
        assert ones.cpu().device.type == "cpu"


def test_a_shape_is_learned_with_its_length() -> None:
    with mps():
        numbers = torch.ones(4, device="mps")
        for _ in range(3):
            assert numbers.repeat(torch.Size([2, 1])).shape == (2, 4)
        with pytest.raises(RuntimeError, match="dimensions <= 16"):
            numbers.repeat(torch.Size([1] * 17))


def test_zeros_without_memory_meet_calls_that_are_known(sim: Simulation) -> None:
    """Torch makes them for derivatives; a kernel by itself would read where nothing is."""
    x = torch.ones(1, 2, 2, device="mps")
    for _ in range(3):
        x + x
        x * 2
        x.sum()
    zero = torch._efficientzerotensor((1, 2, 2), device="mps")
    assert (x + zero).tolist() == x.tolist()
    assert (zero * 2).sum().item() == 0
    assert zero.view(4)[0].item() == 0
    made = torch.nn.functional.scaled_dot_product_attention(x, zero, zero)
    assert made.sum().item() == 0
    tangent = torch.func.jvp(lambda t: torch.ones_like(t), (x,), (x,))[1]
    assert (tangent + x).tolist() == x.tolist()


def test_a_signal_whose_handler_raises_finds_the_mode_where_it_was(sim: Simulation) -> None:
    """Wherever in a sign it arrives; so do a program's timeouts and Ctrl+C."""

    class RungError(Exception):
        pass

    def ring(number: int, frame: object) -> None:
        raise RungError

    x = torch.ones(4, device="mps")
    for _ in range(3):
        x + x
    modes = function_modes()
    rung, before = 0, signal.signal(signal.SIGALRM, ring)
    try:
        for delay in range(1, 4000):
            try:
                signal.setitimer(signal.ITIMER_REAL, delay % 40 * 1e-6 + 1e-6)
                for _ in range(30):
                    x + x
                signal.setitimer(signal.ITIMER_REAL, 0)
            except RungError:
                rung += 1
            assert [type(mode) for mode in function_modes()] == [type(mode) for mode in modes]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung > 100
    assert (x + x).device.type == "mps"


def test_memory_is_not_taken_from_under_a_tensor(sim: Simulation) -> None:
    """A Mac refuses it, so that no kernel reads where nothing is; tensors may still be resized."""
    x = torch.ones(4, device="mps")
    with pytest.raises(RuntimeError, match="unexpected device type mps"):
        x.untyped_storage().resize_(0)
    assert (x + x).tolist() == [2, 2, 2, 2]
    assert x.resize_(2).tolist() == [1, 1]
    assert torch.ones(4).untyped_storage().resize_(0).nbytes() == 0
