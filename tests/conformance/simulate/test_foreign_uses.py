"""How other people's code places tensors and modules, and what a Mac answers to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._higher_order_ops.scan import scan
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils import rnn

from conformance import simulate

pytestmark = pytest.mark.usefixtures("sim")
DEVICE = torch.device("mps", 0)


def placed(module: torch.nn.Module) -> set[torch.device]:
    return {tensor.device for tensor in module.state_dict().values()}


@pytest.mark.parametrize(
    "to",
    [
        lambda module: module.to(device="mps"),
        lambda module: module.to(device="mps", dtype=torch.float16),
        lambda module: module.to(torch.ones(1, device="mps")),
        lambda module: module.to(tensor=torch.ones(1, device="mps")),
        lambda module: module.to(0),
        lambda module: module.to(device=0),
        lambda module: module.to("mps", torch.float16),
    ],
    ids=["keyword", "keywords", "tensor", "named tensor", "index", "named index", "positions"],
)
def test_a_module_goes_where_it_is_sent(to: Callable[[Any], Any]) -> None:
    assert placed(to(torch.nn.BatchNorm1d(3))) == {DEVICE}


def test_a_module_keeps_its_place_and_changes_its_dtype() -> None:
    module = torch.nn.Linear(2, 2, device="mps").to(torch.float16)
    assert (placed(module), module.weight.dtype) == ({DEVICE}, torch.float16)
    assert placed(module.to(torch.ones(1))) == {torch.device("cpu")}


@pytest.mark.parametrize("made_inside", [False, True])
def test_a_module_is_sent_in_inference_mode(made_inside: bool) -> None:
    module = torch.nn.Linear(2, 2)
    with torch.inference_mode():
        if made_inside:
            module = torch.nn.Linear(2, 2)
        module.to("mps")
        assert module(torch.ones(1, 2, device="mps")).device == DEVICE


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2).to(0),
        lambda: torch.zeros(2, device=0),
        lambda: torch.ones(2).to(torch.device(0)),
        lambda: torch.tensor([1.0], device=0),
        lambda: torch.ones(2).type_as(torch.ones(1, device="mps")),
        lambda: torch.UntypedStorage(4, device="mps"),
        lambda: torch.from_dlpack(torch.ones(2, device="mps")),
    ],
)
def test_an_index_or_another_tensor_says_where(make: Callable[[], Any]) -> None:
    assert make().device == DEVICE


def test_no_mac_has_a_second_device() -> None:
    assert torch.device(0) == DEVICE
    with pytest.raises(RuntimeError, match="MPS device index must be 0, but got 1"):
        torch.zeros(1, device=1)


def test_type_as_takes_the_dtype_too_and_goes_back() -> None:
    there = torch.ones(2, dtype=torch.int32, device="mps")
    assert torch.ones(2).type_as(there).dtype is torch.int32
    assert there.type_as(torch.ones(1)).device == torch.device("cpu")


def test_shapes_without_values_are_not_on_the_device() -> None:
    x = torch.ones(2, device="mps")
    for made in (x.to("meta"), torch.empty_like(x, device="meta"), x.new_zeros(3, device="meta")):
        assert made.device == torch.device("meta")
    assert x.sum().item() == 2.0


def test_no_draw_is_made_twice() -> None:
    """In a process of its own: only an operator's first run is made of its parts."""
    script = (
        "import torch\n"
        "from conformance import simulate\n"
        "with simulate.mps():\n"
        "    for draw in (torch.randn, torch.rand, lambda n, device: torch.randint(99, (n,),\n"
        "                 device=device), lambda n, device: torch.randperm(n, device=device),\n"
        "                 lambda n, device: torch.ones(n, device=device).exponential_(),\n"
        "                 lambda n, device: torch.ones(n, device=device).bernoulli(0.5)):\n"
        "        first, second = (draw(64, device='mps').cpu() for _ in range(2))\n"
        "        print(torch.equal(first, second))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"] * 6


def test_optimisers_group_tensors_by_where_they_are() -> None:
    there, here = torch.ones(2, device="mps"), torch.ones(3)
    lists = [[there, here, there], [None, here, None], []]
    grouped = torch._C._group_tensors_by_device_and_dtype(lists, True)
    assert set(grouped) == {(DEVICE, torch.float32), (torch.device("cpu"), torch.float32)}
    assert grouped[DEVICE, torch.float32] == ([[there, there], [None, None], []], [0, 2])


def test_a_training_step_waits_for_nothing(sim: simulate.Simulation) -> None:
    module = torch.nn.Linear(3, 3, device="mps")
    signal = torch.ones(1, 3, device="mps")
    optimizer = torch.optim.AdamW(module.parameters(), foreach=True)
    for _ in range(2):
        module(signal).sum().backward()
        assert torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0).device == DEVICE
        optimizer.step()
    assert not sim.recorder.transfers


def test_pinned_memory_is_the_hosts() -> None:
    assert torch.empty(2, device="cpu", pin_memory=True).device == torch.device("cpu")


def test_sequences_are_packed_by_lengths_on_the_host() -> None:
    signal = torch.randn(2, 3, 1, device="mps")
    for _ in range(2):
        packed = rnn.pack_padded_sequence(signal, torch.tensor([3, 2]), batch_first=True)
        assert (packed.data.device, packed.batch_sizes.device.type) == (DEVICE, "cpu")
    made, lengths = rnn.pad_packed_sequence(
        torch.nn.LSTM(1, 2, batch_first=True, device="mps")(packed)[0], batch_first=True
    )
    assert made.device == DEVICE
    assert lengths.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (
            lambda: rnn.pack_padded_sequence(
                torch.ones(2, 3, 1, device="mps"), torch.tensor([3, 2], device="mps")
            ),
            RuntimeError,
            "'lengths' argument should be a 1D CPU int64 tensor, but got 1D mps:0 Long tensor",
        ),
        (
            lambda: torch.nn.ConvTranspose3d(1, 1, 2, device="mps", dtype=torch.float16)(
                torch.ones(1, 1, 2, 2, 2, device="mps", dtype=torch.float16)
            ),
            RuntimeError,
            "ConvTranspose 3D with BF16 or FP16 types is not supported on MPS",
        ),
        (
            lambda: torch.ones(1).type("torch.mps.FloatTensor"),
            ValueError,
            "invalid type: 'torch.mps.FloatTensor'",
        ),
        (
            lambda: torch.ones(4, device="mps").tensor_split(torch.tensor([1], device="mps")),
            RuntimeError,
            "tensor_split expected tensor_indices_or_sections to be on cpu, but it's on mps:0",
        ),
        (
            lambda: torch.ones(2, device="mps").to(torch.float8_e8m0fnu),
            TypeError,
            "Trying to convert Float8_e8m0fnu to the MPS backend",
        ),
    ],
    ids=["lengths", "transposed half", "type by name", "split", "float8"],
)
def test_a_mac_refuses(use: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        use()
    assert words in str(caught.value)
    assert "simulated failure" in str(caught.value)


def test_what_stays_of_them() -> None:
    """Float32 volumes, splits at numbers, lengths sorted by the library."""
    volume = torch.nn.ConvTranspose3d(1, 1, 2, device="mps")(
        torch.ones(1, 1, 2, 2, 2, device="mps")
    )
    assert volume.shape == (1, 1, 3, 3, 3)
    parts = torch.ones(4, device="mps").tensor_split((1, 3))
    assert [part.numel() for part in parts] == [1, 2, 1]
    unsorted = rnn.pack_padded_sequence(
        torch.ones(3, 2, 1, device="mps"), torch.tensor([1, 3]), enforce_sorted=False
    )
    assert unsorted.data.device == DEVICE
    assert simulate.active() is not None


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("place", ["mps", "cpu"])
def test_sparse_tensors_are_made_and_summed(place: str) -> None:
    """2.13 has SparseMPS kernels, also for parts that still lie on the host."""
    indices = torch.tensor([[0, 1, 1]], device=place)
    made = torch.sparse_coo_tensor(
        indices, torch.tensor([1.0, 2.0, 3.0], device=place), (3,), device="mps"
    )
    assert made.device == DEVICE
    assert made.coalesce().values().tolist() == [1.0, 5.0]
    assert made.to_dense().tolist() == [1.0, 5.0, 0.0]
    assert made.cpu().to_dense().device.type == "cpu"


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_a_sparse_embedding_has_sparse_gradients() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True, device="mps")
    table(torch.tensor([1, 1, 3], device="mps")).sum().backward()
    gradient = table.weight.grad
    assert gradient is not None
    assert (gradient.layout, gradient.device) == (torch.sparse_coo, DEVICE)
    assert gradient.coalesce().values().tolist() == [[2.0, 2.0], [1.0, 1.0]]


def test_systems_are_solved_with_a_kernel_that_torch_registers_in_python() -> None:
    matrix = (2 * torch.eye(2, device="mps")).requires_grad_()
    made = torch.linalg.solve(matrix, torch.ones(2, 1, device="mps"))
    made.sum().backward()
    assert made.tolist() == [[0.5], [0.5]]
    assert matrix.grad is not None
    assert matrix.grad.tolist() == [[-0.25, -0.25], [-0.25, -0.25]]


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda x: torch.linalg.eigh(x), "_linalg_eigh.eigenvalues"),
        (lambda x: torch.linalg.svdvals(x), "_linalg_svd.U"),
        (
            lambda x: torch.nn.functional.adaptive_max_pool3d(x.expand(1, 1, 4, 2, 2), 2),
            "adaptive_max_pool3d.out",
        ),
    ],
)
def test_a_refusal_names_the_overload_that_computes(use: Callable[[Any], Any], name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"The operator 'aten::{name}' is not"):
        use(torch.eye(2, device="mps"))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_jagged_tensors_are_made_of_tensors_of_the_device() -> None:
    parts = [torch.ones(2, 3, device="mps"), torch.ones(1, 3, device="mps")]
    made = torch.nested.as_nested_tensor(parts, layout=torch.jagged) * 2
    assert made.device == DEVICE
    assert made.values().sum().item() == 18.0
    host = torch.nested.nested_tensor([torch.ones(2), torch.ones(1)], layout=torch.jagged)
    assert host.to("mps").device == DEVICE


def test_the_kernel_of_a_tensor_class_is_seen_part_by_part(sim: simulate.Simulation) -> None:
    class Doubled(torch.Tensor):
        @staticmethod
        def __new__(cls, inner: torch.Tensor) -> Doubled:
            made: Any = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
            made.inner = inner
            return made  # type: ignore[no-any-return]

        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            inner = [getattr(value, "inner", value) for value in args]
            return torch.linalg.eigvalsh(inner[0] * 2)

    with pytest.raises(NotImplementedError, match="aten::_linalg_eigh"):
        Doubled(torch.eye(2, device="mps")) + 1
    assert sim.recorder.operators["aten::mul.Tensor"] == 1


class Boxed(torch.Tensor):
    """A tensor made of another, which says it lies where that one does."""

    kept: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Boxed:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )
        made.kept = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        inner = [getattr(value, "kept", value) for value in args]
        made = func(*inner, **(kwargs or {}))
        return cls(made) if isinstance(made, torch.Tensor) else made


def test_a_tensor_made_of_tensors_is_indexed_moved_and_differentiated() -> None:
    """C++ guards the device of each of these, and would abort for one that it has not."""
    box = Boxed(torch.arange(4.0, device="mps").reshape(2, 2))
    assert box.device == DEVICE
    assert box.is_mps
    assert isinstance(box[0], Boxed)
    assert box[0].kept.tolist() == [0, 1]
    host = box.cpu()
    assert (host.device.type, host.kept.device.type) == ("cpu", "cpu")
    assert host.to("mps").kept.device == DEVICE
    leaf = Boxed(torch.ones(2, device="mps")).requires_grad_()
    (leaf * 3).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.kept.tolist() == [3, 3]  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="same device"):
        box + torch.ones(2, 2)


def test_gradients_of_ragged_tensors_come_back_to_the_host() -> None:
    ragged = torch.nested.nested_tensor(
        [torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged, requires_grad=True
    )
    (ragged.to("mps") * 2).values().sum().backward()
    assert ragged.grad is not None
    assert ragged.grad.device.type == "cpu"
    assert ragged.grad.values().sum().item() == 18


@pytest.mark.filterwarnings("ignore")  # Both say that nothing is compiled.
def test_operators_that_take_functions_run_as_the_program_does() -> None:
    """Flexible attention without a compiler, and a condition."""
    tokens = torch.arange(64.0, device="mps").reshape(1, 2, 8, 4) / 32
    flexible = flex_attention(tokens, tokens, tokens)
    assert flexible.device == DEVICE
    torch.testing.assert_close(flexible, scaled_dot_product_attention(tokens, tokens, tokens))
    yes = torch.tensor(True, device="mps")
    chosen = torch.cond(yes, lambda x: x + 1, lambda x: x - 1, (tokens,))
    assert chosen.device == DEVICE
    assert torch.equal(chosen, tokens + 1)
    with pytest.raises(RuntimeError, match="the derivative of torch"):
        torch.cond(yes, lambda x: x + 1, lambda x: x - 1, (tokens.clone().requires_grad_(),))
    with pytest.raises(RuntimeError, match="torch's scan of tensors"):
        scan(lambda total, x: (total + x, total * 1), yes + 0.0, tokens[0, 0, 0])


def test_a_lazy_module_is_moved_before_it_knows_its_shape() -> None:
    layer = torch.nn.LazyLinear(3).to("mps")
    assert layer(torch.ones(2, 4, device="mps")).shape == (2, 3)
    assert layer.weight.device == DEVICE


def test_a_capsule_of_the_device_is_opened_there() -> None:
    there = torch.ones(2, device="mps")
    opened = torch.from_dlpack(torch.utils.dlpack.to_dlpack(there))
    assert opened.device == DEVICE
    assert opened.data_ptr() == there.data_ptr()
    host = torch.ones(2)
    assert torch.from_dlpack(torch.utils.dlpack.to_dlpack(host)).device.type == "cpu"
