"""Simulated tensors say `mps`, and behave as tensors otherwise."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from conformance import simulate

pytestmark = pytest.mark.usefixtures("sim")
DEVICE = "mps"


def test_a_tensor_reports_its_device() -> None:
    x = torch.ones(2, 3, device=DEVICE)
    assert x.device == torch.device("mps:0")
    assert x.is_mps
    assert not x.is_cpu
    assert not x.is_cuda
    assert x.get_device() == 0
    assert type(x) is torch.Tensor
    assert x.type() == "torch.mps.FloatTensor"
    assert repr(x[0]) == "tensor([1., 1., 1.], device='mps:0')"
    assert f"{x.sum():.1f}" == "6.0"


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, device=DEVICE),
        lambda: torch.tensor([1, 2, 3], device=torch.device(DEVICE)),
        lambda: torch.tensor([1, 2, 3], device="mps:0"),
        lambda: torch.as_tensor(np.arange(3), device=DEVICE),
        lambda: torch.asarray([1, 2, 3], device=DEVICE),
        lambda: torch.arange(3, device=DEVICE),
        lambda: torch.rand(3, device=DEVICE),
        lambda: torch.full((3,), 2, device=DEVICE),
        lambda: torch.zeros_like(torch.ones(3), device=DEVICE),
        lambda: torch.ones(3).new_zeros(3, device=DEVICE),
        lambda: torch.ones(3, device=DEVICE).new_tensor([1.0, 2.0, 3.0]),
        lambda: torch.ones(3).to(DEVICE),
        lambda: torch.ones(3).to(torch.device(DEVICE), torch.float16),
        lambda: torch.ones(3).to(device=DEVICE, dtype=torch.int32),
        lambda: torch.ones(3).to(torch.zeros(1, device=DEVICE)),
        lambda: torch.ones(3, device=DEVICE).type(torch.int64),
        lambda: torch.ones(3, device=DEVICE).half(),
        lambda: torch.ones(3, device=DEVICE).to(DEVICE, copy=True),
        lambda: torch.ones(3, device=DEVICE).long().float().bfloat16(),
        lambda: torch.tensor(torch.ones(3, device=DEVICE).tolist(), device=DEVICE),
        lambda: torch.linspace(0, 1, 3, device=DEVICE),
        lambda: torch.eye(3, device=DEVICE)[0],
        lambda: torch.from_dlpack(torch.ones(3, device=DEVICE)),
    ],
)
def test_every_way_to_make_one(make: object) -> None:
    assert callable(make)
    x = make()
    assert x.device == torch.device("mps:0")
    assert x.shape == (3,)


def test_what_leaves_the_device_is_on_the_host() -> None:
    x = torch.arange(4.0, device=DEVICE)
    for y in (
        x.cpu(),
        x.to("cpu"),
        x.to(torch.zeros(1)),
        x.type("torch.FloatTensor"),
        torch.as_tensor(x, device="cpu"),
        torch.zeros_like(x, device="cpu"),
        x.new_zeros(4, device="cpu"),
        torch.tensor(x.tolist()),
        torch.from_dlpack(x, device="cpu"),
        torch.empty(4).copy_(x),
    ):
        assert y.device == torch.device("cpu")
        assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert x.cpu().numpy().tolist() == [0, 1, 2, 3]
    assert x.numpy(force=True).tolist() == [0, 1, 2, 3]
    assert np.asarray(x.cpu()).sum() == 6


def test_device_contexts_and_the_default_device() -> None:
    with torch.device(DEVICE):
        assert torch.zeros(1).is_mps
        assert torch.tensor([1.0]).is_mps
        assert torch.nn.Linear(2, 2).weight.is_mps
        assert torch.get_default_device() == torch.device("mps:0")
        assert torch.zeros(1, device="cpu").is_cpu
    assert torch.zeros(1).is_cpu
    torch.set_default_device(DEVICE)
    try:
        assert torch.get_default_device() == torch.device("mps:0")
        assert torch.arange(2).is_mps
        assert torch.as_tensor([1, 2]).is_mps
    finally:
        torch.set_default_device(None)
    assert torch.arange(2).is_cpu


def test_views_and_in_place_writes_alias() -> None:
    x = torch.zeros(4, 4, device=DEVICE)
    x[1:3].t()[0] = 5
    x.view(16)[0] += 1
    x[[3]] = torch.ones(1, 4, device=DEVICE)
    x[x > 4] = 7
    row = x.select(0, 3)
    row.mul_(2)
    assert x.cpu().tolist() == [[1, 0, 0, 0], [7, 0, 0, 0], [7, 0, 0, 0], [2, 2, 2, 2]]
    assert x[None].data_ptr() == x.data_ptr()
    assert x.diagonal().is_mps
    torch._foreach_add_([x, row], 1)
    assert x[3].cpu().tolist() == [4, 4, 4, 4]


def test_module_keeps_parameters_ties_and_optimizer() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[1].weight = module[0].weight
    weight = module[0].weight
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert module.to(DEVICE) is module
    assert module[0].weight is weight is module[1].weight
    assert weight.is_mps
    before = weight.detach().clone()
    module(torch.ones(1, 2, device=DEVICE)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, weight)
    twin = copy.deepcopy(module)
    assert twin[0].weight.is_mps
    assert twin[0].weight.data_ptr() != weight.data_ptr()
    assert module.cpu()[0].weight.is_cpu


def test_saved_and_loaded() -> None:
    state = {"x": torch.arange(3.0, device=DEVICE), "y": torch.ones(1)}
    stream = io.BytesIO()
    torch.save(state, stream)
    for location, type_ in ((None, "mps"), ("cpu", "cpu"), (torch.device(DEVICE), "mps")):
        stream.seek(0)
        loaded = torch.load(stream, map_location=location)
        assert loaded["x"].device.type == type_
        assert loaded["x"].tolist() == [0, 1, 2]
    stream.seek(0)
    assert torch.load(stream, map_location=DEVICE)["y"].is_mps
    assert pickle.loads(pickle.dumps(state["x"])).is_mps
    assert state["x"].untyped_storage().clone().device.type == DEVICE
    assert state["y"].untyped_storage().clone().device.type == "cpu"
    assert state["x"].untyped_storage().mps().device.type == DEVICE
    assert state["x"].untyped_storage().cpu().device.type == "cpu"


def test_gradients_cross_between_devices() -> None:
    host = torch.randn(3, 3, requires_grad=True)
    device = torch.randn(3, 3, device=DEVICE).requires_grad_()
    seen: list[torch.Tensor] = []
    moved = host.to(DEVICE, torch.float16)
    moved.register_hook(seen.append)
    ((moved.float() @ device).cpu() * host).sum().backward()
    assert host.grad is not None
    assert device.grad is not None
    assert host.grad.is_cpu
    assert host.grad.dtype is torch.float32
    assert device.grad.is_mps
    assert seen[0].is_mps
    assert seen[0].dtype is torch.float16


def test_double_backward_and_forward_derivatives() -> None:
    x = torch.tensor([2.0, 3.0], device=DEVICE, requires_grad=True)
    (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.is_mps
    assert second.tolist() == [12, 18]
    value, tangent = torch.func.jvp(
        lambda t: t.to(DEVICE) * 2, (torch.ones(2),), (torch.full((2,), 3.0),)
    )
    assert value.is_mps
    assert tangent.is_mps
    assert tangent.tolist() == [6, 6]
    doubled = torch.func.vmap(lambda row: row.to(row.device) * 2)(torch.ones(2, 2, device=DEVICE))
    assert doubled.is_mps


def test_user_functions_and_hooks_run_inside_the_simulation() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            return grad * torch.full((), 2.0, device=DEVICE)

    x = torch.ones(2, device=DEVICE, requires_grad=True)
    x.register_hook(lambda grad: grad + torch.ones(2).to(DEVICE))
    Doubled.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.is_mps
    assert x.grad.tolist() == [3, 3]


def test_threads_have_the_device_too() -> None:
    results: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: results.append(torch.ones(2).to(DEVICE) + 1))
    thread.start()
    thread.join()
    assert results[0].is_mps


def test_inference_mode_and_no_grad() -> None:
    layer = torch.nn.Linear(2, 2).to(DEVICE)
    with torch.inference_mode():
        y = layer(torch.ones(1, 2, device=DEVICE))
        assert y.is_mps
        assert y.is_inference()
    with torch.no_grad():
        assert torch.equal(y, layer(torch.ones(1, 2, device=DEVICE)))


def test_data_loader_declines_to_pin() -> None:
    loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=2, pin_memory=True)
    with pytest.warns(UserWarning, match="not supported on MPS"):
        batches = [batch[0].to(DEVICE) for batch in loader]
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3]]


def test_compiled_functions_run_eagerly_and_say_so() -> None:
    with pytest.warns(simulate.SimulationWarning, match="runs eagerly"):
        compiled = torch.compile(lambda x: x + 1)
    assert compiled(torch.ones(1, device=DEVICE)).tolist() == [2]


def test_operators_written_in_python_run_as_user_code() -> None:
    @torch.library.custom_op("conformance_tests::padded", mutates_args=())
    def padded(x: torch.Tensor) -> torch.Tensor:
        room = torch.empty(1, device=x.device).fill_(1)
        return torch.cat([x.to(room.device), room, torch.tensor([2.0], device=x.device)])

    try:
        for _ in range(2):
            y = padded(torch.zeros(1, device=DEVICE))
            assert y.is_mps
            assert y.tolist() == [0, 1, 2]
        assert padded(torch.zeros(1)).is_cpu
    finally:
        padded._lib._destroy()


def test_operators_registered_for_the_cpu_alone_are_missing() -> None:
    library = torch.library.Library("conformance_tests", "FRAGMENT")
    library.define("only_here(Tensor x) -> Tensor")
    library.impl("only_here", lambda x: x.clone(), "CPU")
    try:
        assert torch.ops.conformance_tests.only_here(torch.ones(1)).item() == 1
        with pytest.raises(NotImplementedError, match="conformance_tests::only_here"):
            torch.ops.conformance_tests.only_here(torch.ones(1, device=DEVICE))
    finally:
        library._destroy()


def test_sparse_and_complex_tensors() -> None:
    dense = torch.eye(3).to(DEVICE)
    sparse = dense.to_sparse()
    assert sparse.is_mps
    assert sparse.cpu().is_cpu
    assert sparse.to_dense().is_mps
    z = torch.ones(2, device=DEVICE).to(torch.complex64)
    assert (z * 1j).imag.tolist() == [1, 1]
    assert z.real.is_mps


def test_what_only_the_cpu_cannot_compute_runs(sim: simulate.Simulation) -> None:
    """Metal has kernels in half precision and bool that the CPU lacks."""
    mask = torch.tensor([True, False], device=DEVICE)
    assert torch.floor(mask).dtype is torch.bool
    half = torch.tensor([1.0, 2.0], device=DEVICE, dtype=torch.float16)
    made = torch.special.bessel_j0(half)
    assert (made.dtype, made.device.type) == (torch.float16, "mps")
    assert torch.allclose(made.float(), torch.special.bessel_j0(half.float()), atol=1e-3)
    with pytest.raises(RuntimeError, match="not implemented for 'Half'"):
        torch.special.bessel_j0(half.cpu())
