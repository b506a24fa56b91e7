"""Classes of tensors keep their class between the devices, and are asked as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("sim")
Move = Callable[[torch.Tensor], torch.Tensor]


class Kept(torch.Tensor):
    """A class that leaves everything to torch."""


class Labelled(torch.Tensor):
    """A class with code of its own, that notes what it is asked."""

    asked: ClassVar[list[Any]] = []
    label: str

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        cls.asked.append(func)
        made = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if isinstance(made, cls):
            made.label = args[0].label
        return made


MOVES: list[Move] = [
    lambda x: x.to("mps"),
    lambda x: x.to("mps", copy=True),
    lambda x: x.to("mps", torch.float16),
    lambda x: x.to(torch.ones(1, device="mps")),
    lambda x: x.to("mps").cpu(),
    lambda x: x.to("mps").to("cpu"),
    lambda x: torch.as_tensor(x.to("mps")),
    lambda x: x.requires_grad_().to("mps"),
    lambda x: x.to("mps") + 1,
]


@pytest.mark.parametrize("move", MOVES)
def test_a_class_is_kept(move: Move) -> None:
    assert type(move(torch.ones(2).as_subclass(Kept))) is Kept


def test_a_class_is_asked_what_the_program_called_and_nothing_else() -> None:
    x = torch.ones(2).as_subclass(Labelled)
    x.label = "left"
    Labelled.asked.clear()
    there = x.to("mps")
    back = there.cpu()
    assert there.tolist() == [1.0, 1.0]
    assert there[0].item() == 1.0
    assert Labelled.asked == [
        torch.Tensor.to,
        torch.Tensor.cpu,
        torch.Tensor.tolist,
        torch.Tensor.__getitem__,
        torch.Tensor.item,
    ]
    assert isinstance(there, Labelled)
    assert isinstance(back, Labelled)
    assert (there.label, back.label) == ("left", "left")
    assert (there.device.type, back.device.type) == ("mps", "cpu")


def test_a_modules_buffer_keeps_its_class() -> None:
    module = nn.Module()
    module.register_buffer("signal", torch.ones(2).as_subclass(Kept))
    module.register_parameter("weight", nn.Parameter(torch.ones(2)))
    module.to("mps")
    assert type(module.signal) is Kept
    assert type(module.weight) is nn.Parameter
    assert module.signal.device == module.weight.device == torch.device("mps:0")


def test_a_lazy_module_is_moved_before_it_knows_its_sizes() -> None:
    module = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()).to("mps")
    module(torch.ones(3, 5, device="mps"))
    assert module[1].running_mean.device.type == "mps"
