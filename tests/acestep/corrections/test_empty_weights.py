"""Modules made without storage, beside threads that make others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from acestep.corrections.empty_weights import without_storage
from acestep.device import resolve
from acestep.handler import AceStepHandler


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2, bias=False)
        self.tied = nn.Linear(3, 2, bias=False)
        self.tied.weight = self.inner.weight
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("table", torch.arange(4.0))
        self.register_parameter("none", None)


def test_parameters_are_empty_and_buffers_are_real() -> None:
    with without_storage():
        part = Part()
    assert part.inner.weight.is_meta
    assert part.inner.weight.shape == (2, 3)
    assert part.tied.weight is part.inner.weight, "as the module ties them"
    assert (part.frozen.is_meta, part.frozen.dtype) == (True, torch.bfloat16)
    assert (part.frozen.requires_grad, part.inner.weight.requires_grad) == (False, True)
    assert part.table.tolist() == [0, 1, 2, 3]
    assert part.none is None
    assert not Part().inner.weight.is_meta, "no longer"


def test_another_thread_makes_what_it_asks_for() -> None:
    inside, leave = threading.Event(), threading.Event()

    def empty() -> Part:
        with without_storage():
            inside.set()
            leave.wait(10)
            return Part()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(empty)
        inside.wait(10)
        own = Part()
        with without_storage():
            leave.set()
            assert other.result().inner.weight.is_meta
        assert not own.inner.weight.is_meta
        assert not Part().inner.weight.is_meta, "whoever leaves last"


def test_two_checkpoints_are_loaded_at_once() -> None:
    """As the service with two devices does when the first songs come."""
    together = threading.Barrier(2)

    def load(handler: AceStepHandler) -> AceStepHandler:
        together.wait(10)
        handler.load("demo", resolve("cpu"))
        return handler

    with ThreadPoolExecutor(2) as pool:
        handlers = list(pool.map(load, [AceStepHandler(), AceStepHandler()]))
    for handler in handlers:
        parts = handler.engine.pipeline.components.values()
        weights = [w for part in parts if isinstance(part, nn.Module) for w in part.parameters()]
        assert weights
        assert not any(weight.is_meta for weight in weights)
