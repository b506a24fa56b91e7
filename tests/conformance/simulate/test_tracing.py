"""What traces programs for a compiler is refused in one line on the device, and runs beside it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from conformance.simulate.dispatch import DeviceMode
from conformance.simulate.session import Simulation
from conformance.simulate.tracing import NotSimulatedError

pytestmark = [
    pytest.mark.usefixtures("sim"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def on() -> Any:
    return torch.ones(1, 2, device="mps")


def layer() -> Any:
    return torch.nn.Linear(2, 2, device="mps")


class Placing(torch.nn.Module):
    """On the host itself; what it makes goes to the device."""

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return signal.to("mps") + 1


def faked() -> Any:
    with FakeTensorMode():
        return torch.ones(2, device="mps")


def faked_and_moved() -> Any:
    with FakeTensorMode():
        return torch.ones(2).to("mps")


def traced_with_one_kept() -> Any:
    kept = on()
    return torch.jit.trace(lambda x: x + kept, torch.ones(2))


def loaded(where: object) -> Any:
    kept = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), kept)
    kept.seek(0)
    return torch.jit.load(kept, map_location=where)


@pytest.mark.parametrize(
    "use",
    [
        lambda: torch.export.export(layer(), (on(),)),
        lambda: torch.export.export(torch.nn.Linear(2, 2), (on(),)),
        lambda: torch.export.export(Placing(), (torch.ones(1, 2),)),
        faked,
        faked_and_moved,
        lambda: make_fx(lambda x: x + 1)(on()),
        lambda: make_fx(lambda x: torch.ones(2, device=x.device), tracing_mode="fake")(on()),
        lambda: torch.jit.trace(layer(), on()),
        lambda: torch.jit.trace(lambda x: x + torch.ones(2, device="mps"), torch.ones(2)),
        traced_with_one_kept,
        lambda: torch.jit.save(torch.jit.script(layer()), io.BytesIO()),
        lambda: torch.jit.script(layer()).save_to_buffer(),
        lambda: loaded("mps"),
        lambda: loaded(torch.device("mps", 0)),
    ],
    ids=(
        "module,argument,inside,fake,moved in fake,fx,fx in fake,trace,made in trace,kept for trace,"
        "save,method,load,load by device"
    ).split(","),
)
def test_refused_in_a_line(use: Callable[[], Any]) -> None:
    with pytest.raises(NotSimulatedError) as caught:
        use()
    said = str(caught.value)
    assert said.startswith("[mps-sim] ")
    assert "is not simulated" in said
    assert "\n" not in said


def test_on_the_host_all_of_it_works() -> None:
    signal = torch.ones(1, 2)
    module = torch.nn.Linear(2, 2)
    wanted = module(signal)
    assert torch.equal(torch.export.export(module, (signal,)).module()(signal), wanted)
    assert torch.equal(torch.jit.trace(module, signal)(signal), wanted)
    image, layer = torch.ones(1, 1, 3, 3), torch.nn.Conv2d(1, 1, 2)
    assert torch.equal(torch.jit.trace(layer, image)(image), layer(image))
    assert torch.equal(torch.jit.script(module)(signal), wanted)
    assert torch.equal(make_fx(module)(signal)(signal), wanted)
    assert loaded(None).weight.device.type == "cpu"
    with FakeTensorMode():
        assert torch.ones(2).device.type == "cpu"
    assert on().sum().item() == 2.0


def placed_like(signal: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.tensor([1.0, 2.0], device=signal.device)
    return made + torch.zeros(2, device=signal.device) + signal


def test_a_scripted_function_makes_its_tensors_where_its_arguments_are() -> None:
    scripted = torch.jit.script(placed_like)
    assert scripted(on()).device.type == "mps"
    assert scripted(torch.ones(1, 2)).device.type == "cpu"
    assert scripted(on()).tolist() == [[2.0, 3.0]]


class Filling(torch.nn.Module):
    def forward(self, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(2, device=signal.device) + signal, torch.ones(1) + torch.tensor([1])


def test_a_scripted_module_does_too() -> None:
    assert torch.jit.script(layer())(on()).device.type == "mps"
    scripted = torch.jit.script(Filling())
    made, unsaid = scripted(on())
    assert (made.device.type, unsaid.device.type) == ("mps", "cpu")
    assert {tensor.device.type for tensor in scripted(torch.ones(2))} == {"cpu"}


def test_numbers_that_a_traced_program_keeps_as_tensors_are_compared(sim: Simulation) -> None:
    """Its optimiser asks whether two are equal, and dispatch hands them to Python as numbers."""
    mode = DeviceMode(sim.core)
    assert mode._dispatch(torch.ops.aten.equal.default, (84, 84), {}) is True
    assert mode._dispatch(torch.ops.aten.equal.default, (84, 2), {}) is False
