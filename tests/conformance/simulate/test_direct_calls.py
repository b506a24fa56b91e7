"""Calls that run straight once they are known: what they make, count and leave to be looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.simulate.session import Simulation


def straight(sim: Simulation, function: Any) -> bool:
    """Whether calls of this function of torch's are known."""
    return bool(sim.core.calls.get(function))


def test_known_calls_make_and_count_as_the_first_did(sim: Simulation) -> None:
    """Results lie on the device, each call counts one operator, and memory is given back."""
    x = torch.arange(4.0, device="mps")
    x + x
    assert straight(sim, torch.Tensor.add)
    before = sim.recorder.operators["aten::add.Tensor"]
    held = torch.mps.current_allocated_memory()
    y = x + x
    assert y.device.type == "mps"
    assert y.cpu().tolist() == [0, 2, 4, 6]
    assert sim.recorder.operators["aten::add.Tensor"] == before + 1
    assert torch.mps.current_allocated_memory() > held
    del y
    assert torch.mps.current_allocated_memory() == held


def test_other_operands_are_looked_at_again(sim: Simulation) -> None:
    """A tensor left on the host, an element type without a kernel, and memory that is full."""
    x = torch.ones(4, device="mps")
    for _ in range(3):
        x + x
        functional.silu(x)
        x.sum()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(4)
    with pytest.raises(TypeError, match="float64"):
        x.sum(dtype=torch.float64)
    with pytest.raises(RuntimeError, match="must match the size"):
        x + torch.ones(3, device="mps")
    whole = torch.arange(3, device="mps")
    for _ in range(2):
        whole.div(2)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(TypeError, match="float64"):
            whole.div(2)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.mps.set_per_process_memory_fraction(0.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        x + x
    assert sim.recorder.met[-1][:2] == ("out-of-memory", "aten::add.Tensor")


def test_gradients_of_known_calls(sim: Simulation) -> None:
    """A call learned without gradients is learned anew with them."""
    x = torch.tensor([1.0, 2.0], device="mps")
    for _ in range(2):
        (x * x).sum().sqrt()
    w = x.clone().requires_grad_()
    for _ in range(2):
        w.grad = None
        (w * w).sum().backward()
    assert w.grad is not None
    assert w.grad.device.type == "mps"
    assert w.grad.cpu().tolist() == [2, 4]


def test_who_else_listens_hears_them(sim: Simulation) -> None:
    """Another mode, hooks of saved tensors and forward derivatives are not passed by."""
    x = torch.ones(2, 2, device="mps")
    for _ in range(2):
        x.mul(x)
    seen = []

    class Listener(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """False: the compiler, which would be imported for it, takes seconds."""
            return False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Listener():
        x.mul(x)
    assert seen == [torch.ops.aten.mul.Tensor]
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor + 1)
        return tensor

    w = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for _ in range(3):
            w.mul(x)
    assert {tensor.device.type for tensor in kept} == {"mps"}
    known = len(sim.core.calls[torch.Tensor.mul])
    with forward_ad.dual_level():
        x.half().mul(x)
    assert len(sim.core.calls[torch.Tensor.mul]) == known


def test_reading_a_number_is_a_wait_at_the_users_line(sim: Simulation) -> None:
    """One operator and one wait for each, whichever way the number is read."""
    x = torch.ones(1, device="mps")
    for read in (torch.Tensor.item, bool, float, int):
        assert read(x) == 1
    waits = sim.recorder.transfers
    assert sim.recorder.operators["aten::_local_scalar_dense"] == 4
    assert sum(waits.values()) == 4
    assert {place.rpartition(":")[0] for *_, place in waits} == {__file__}


def test_a_linear_layer_is_one_operator(sim: Simulation) -> None:
    """As MPS has it; its gradients find what they need on the device, and others go the long way."""
    layer = torch.nn.Linear(3, 4, device="mps")
    x = torch.ones(2, 5, 3, device="mps", requires_grad=True)
    for _ in range(2):
        layer(x).sum().backward()
    assert sim.recorder.operators["aten::linear"] == 2
    assert x.grad is not None
    assert x.grad.device.type == "mps"
    assert layer(x.transpose(0, 1)).device.type == "mps"
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer(torch.ones(2, 7, device="mps"))
    with pytest.raises(RuntimeError, match="argument input is on cpu"):
        layer(torch.ones(2, 3))


def test_known_parts_count_and_stay_on_the_device(sim: Simulation) -> None:
    """A call of several operators runs straight for shapes it has met, and is told by them."""
    x = torch.arange(12.0, device="mps").reshape(2, 2, 3)
    y = x.transpose(1, 2).contiguous()
    counts = sim.recorder.operators
    whole = (x @ y).cpu().tolist()
    before = counts.copy()
    x @ y
    once = counts - before
    assert sim.core.sequences[torch.Tensor.matmul]
    before = counts.copy()
    again = x @ y
    assert counts - before == once
    assert once["aten::bmm"] == 1
    assert again.is_mps
    assert again.cpu().tolist() == whole
    known = len(sim.core.sequences[torch.Tensor.matmul])
    for _ in range(2):
        assert (x[:1] @ y[:1]).is_mps
    assert len(sim.core.sequences[torch.Tensor.matmul]) == known + 1
    with pytest.raises(RuntimeError, match="expected on mps"):
        x @ y.cpu()


def test_parts_that_autograd_keeps_are_not_run_straight(sim: Simulation) -> None:
    """Its own results would lie on the host; an index of numbers keeps none."""
    norm = torch.nn.LayerNorm(3, device="mps")
    x = torch.ones(2, 2, 3, device="mps")
    for _ in range(3):
        norm(x[0] @ x[1].mT @ x[1]).sum().backward()
        with torch.no_grad():
            norm(x)
    kinds = [exact[0] for exact in sim.core.sequences[functional.layer_norm]]
    assert kinds == [False]
    w = torch.ones(3, 4, device="mps", requires_grad=True)
    for step in range(3):
        row = w[1, ::2]
        assert row._base is w
        row.sum().backward()
        assert w.grad is not None
        assert w.grad.cpu().sum().item() == 2 * (step + 1)
    assert sim.core.sequences[torch.Tensor.__getitem__]


def test_an_element_type_without_a_kernel_is_refused_however_often(sim: Simulation) -> None:
    """What lacks some types is known by its operands' types."""
    x, whole = torch.ones(3, device="mps"), torch.ones(3, dtype=torch.int16, device="mps")
    for _ in range(3):
        functional.silu(x)
        with pytest.raises(RuntimeError, match="silu_int16"):
            functional.silu(whole)
    assert straight(sim, torch._C._nn.silu) or straight(sim, functional.silu)


def test_what_the_parts_of_a_known_call_take_is_memory(sim: Simulation) -> None:
    """The peak of a call is that of its first run, and where it does not fit it is refused."""
    x = torch.rand(1, 2**16, device="mps")
    y = torch.rand(4, 1, device="mps")

    def loss() -> torch.Tensor:
        return torch.triplet_margin_loss(x, y, x)

    def peak() -> int:
        torch.accelerator.reset_peak_memory_stats()
        loss()
        return torch.accelerator.max_memory_allocated()

    first, *others = [peak() for _ in range(4)]
    assert sim.core.sequences[torch.triplet_margin_loss]
    assert first > 8 * x.nbytes
    assert others == [first] * 3
    torch.zeros(2**20, device="mps")
    allowed = torch.mps.current_allocated_memory() + 4 * x.nbytes
    assert sim.machine.allowed_bytes is not None
    torch.mps.set_per_process_memory_fraction(allowed / sim.machine.allowed_bytes)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss()
