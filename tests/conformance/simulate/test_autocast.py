"""Autocast on the device converts what the installed torch's own MPS kernels convert."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from conformance import simulate
from conformance.simulate import autocast

HALF, SINGLE, BRAIN = torch.float16, torch.float32, torch.bfloat16


def test_every_operator_does_what_the_installed_kernel_does() -> None:
    asked = list(autocast.operators())
    assert len(asked) > 80
    policies = autocast.policies()
    assert set(policies) == set(asked)
    for op in asked:
        tensors = [a for a in op._schema.arguments if "Tensor" in str(a.type)]
        many = len(tensors) > 1 or "List" in str(tensors[0].type)
        for pair in ((SINGLE, SINGLE), (HALF, HALF), (SINGLE, HALF), (HALF, SINGLE)):
            present = set(pair) if many else {pair[0]}
            wanted = autocast.wanted(policies[op], present)
            changes = wanted is not None and present != {wanted}
            assert autocast.conversion(op, pair) is (wanted if changes else None), (op, pair)
    assert autocast.Policy.NONE not in policies.values()


def half(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=HALF, device="mps")


def single(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="mps")


RESULTS: dict[str, tuple[Callable[[], torch.Tensor], torch.dtype]] = {
    "linear": (lambda: functional.linear(single(2, 3), single(4, 3)), HALF),
    "matmul": (lambda: single(2, 3) @ single(3, 2), HALF),
    "conv_transpose2d": (
        lambda: functional.conv_transpose2d(single(1, 1, 3, 3), single(1, 1, 2, 2)),
        HALF,
    ),
    "conv_transpose3d": (
        lambda: functional.conv_transpose3d(half(1, 1, 3, 3, 3), half(1, 1, 2, 2, 2)),
        SINGLE,
    ),
    "norm": (lambda: torch.linalg.vector_norm(half(3, 3)), SINGLE),
    "batch_norm": (lambda: functional.batch_norm(half(2, 3), None, None, training=True), SINGLE),
    "group_norm": (lambda: functional.group_norm(half(2, 4), 2), SINGLE),
    "lstm_cell": (lambda: torch.nn.LSTMCell(3, 3, device="mps")(single(2, 3))[0], HALF),
    "lstm": (lambda: torch.nn.LSTM(3, 3, device="mps")(single(2, 3))[0], SINGLE),
    "dot": (lambda: torch.dot(half(3), single(3)), SINGLE),
    "dot in half": (lambda: torch.dot(half(3), half(3)), HALF),
    "cross": (lambda: torch.cross(half(3), single(3), dim=0), SINGLE),
    "bilinear": (lambda: functional.bilinear(half(2, 3), single(2, 3), single(4, 3, 3)), SINGLE),
    "tensordot": (lambda: torch.tensordot(half(2, 3), single(3, 2), dims=1), SINGLE),
    "binary_cross_entropy": (lambda: functional.binary_cross_entropy(half(3), half(3)), HALF),
    "cross_entropy": (
        lambda: functional.cross_entropy(half(1, 3), torch.tensor([1], device="mps")),
        SINGLE,
    ),
    "scatter_add": (
        lambda: single(3).scatter_add(0, torch.tensor([0], device="mps"), half(1)),
        SINGLE,
    ),
    "index_put": (
        lambda: single(3).index_put((torch.tensor([0], device="mps"),), half(1)),
        SINGLE,
    ),
    "gelu": (lambda: functional.gelu(half(3)), HALF),
    "on the host": (lambda: torch.ones(2, 2) @ torch.ones(2, 2), SINGLE),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_have_the_type_that_follows(sim: simulate.Simulation, name: str) -> None:
    use, dtype = RESULTS[name]
    with torch.autocast("mps"):
        assert use().dtype is dtype


def test_weights_are_converted_once_in_a_region(sim: simulate.Simulation) -> None:
    layer = torch.nn.Linear(3, 3, device="mps")
    conversions = []
    for cached in (True, False):
        sim.recorder.clear()
        with torch.autocast("mps", dtype=BRAIN, cache_enabled=cached):
            for _ in range(3):
                made = layer(single(2, 3))
            made.sum().backward()
        conversions.append(sim.recorder.operators["aten::_to_copy"])
    assert conversions[1] - conversions[0] >= 4
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype is SINGLE
    layer.weight.data.fill_(2)
    with torch.autocast("mps"):
        assert layer(single(1, 3)).sum() > 16


def test_a_region_belongs_to_its_thread(sim: simulate.Simulation) -> None:
    found: list[Any] = []
    with torch.autocast("mps"):
        thread = threading.Thread(target=lambda: found.append((single(2, 2) @ single(2, 2)).dtype))
        thread.start()
        thread.join()
        with torch.autocast("mps", enabled=False):
            assert (single(2, 2) @ single(2, 2)).dtype is SINGLE
        assert (single(2, 2) @ single(2, 2)).dtype is HALF
    assert found == [SINGLE]


def test_torchs_own_kernels_are_put_back() -> None:
    mm = torch.ops.aten.mm.default
    for _ in range(2):
        with simulate.mps(), torch.autocast("mps"):
            assert (single(2, 2) @ single(2, 2)).dtype is HALF
        assert autocast.conversion(mm, (SINGLE, SINGLE)) is HALF
    with torch.autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is BRAIN


def test_half_precision_of_the_other_kind_is_refused_in_torchs_words(
    sim: simulate.Simulation,
) -> None:
    with torch.autocast("mps", dtype=BRAIN), pytest.raises(RuntimeError, match="prioritize"):
        torch.dot(half(3), half(3))


def test_a_call_that_is_known_is_converted_in_a_region(sim: simulate.Simulation) -> None:
    x = single(2, 2)
    for _ in range(2):
        assert x.mm(x).dtype is SINGLE
    with torch.autocast("mps", dtype=HALF):
        assert x.mm(x).dtype is HALF
    assert x.mm(x).dtype is SINGLE


def test_the_hosts_autocast_leaves_the_device_alone(sim: simulate.Simulation) -> None:
    """Met for the first time or known, in gradients, in composites, and in either nesting."""
    layer = torch.nn.Linear(2, 2, device="mps")
    x = single(2, 2)
    calls: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: x @ x,
        lambda: x.mm(x),
        lambda: layer(x),
        lambda: torch.einsum("ij,jk->ik", x, x),
        lambda: functional.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda: torch.autograd.grad(layer(x).sum(), layer.weight)[0],
    )
    for call in calls:
        for _ in range(2):
            with torch.autocast("cpu"):
                assert call().dtype is SINGLE
                with torch.autocast("mps", dtype=HALF):
                    assert (x @ x).dtype is HALF
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is BRAIN
            for _ in range(2):
                call()
    with torch.autocast("mps", dtype=HALF), torch.autocast("cpu"):
        assert (x @ x).dtype is HALF


def test_a_region_of_the_hosts_from_before_the_device() -> None:
    with torch.autocast("cpu"), simulate.mps():
        assert (single(2, 2) @ single(2, 2)).dtype is SINGLE
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is BRAIN
