"""Training: one step on the device, in an autocast of that device."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from conformance.entrypoints import covers
from conformance.suite.support import Api
from conformance.targets import Target
from conformance.tree import PACKAGE, Absent, load


def trainer_class(api: Api) -> Any:
    """The public class of `training.trainer` that takes training steps."""
    module = load(api.tree, "training.trainer", optional="peft")
    for name, value in vars(module).items():
        own = inspect.isclass(value) and value.__module__.startswith(PACKAGE)
        if own and not name.startswith("_") and hasattr(value, "training_step"):
            return value
    raise Absent("acestep.training.trainer has no class with a training_step")


class Velocity(torch.nn.Module):
    """A model small enough to train in a test; records the autocast it ran under."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.cast: dict[str, bool] = {}

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """A velocity of the shape of the state `[batch, frames, 8]`."""
        self.cast = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps")}
        velocity: torch.Tensor = self.layer(hidden_states)
        return velocity


@covers("S7")
@torch.enable_grad()
def test_a_step_on_the_device(api: Api, target: Target) -> None:
    model = Velocity()
    trainer = trainer_class(api)(model, device=target.device)
    batch = {"latents": torch.ones(2, 5, 8)}
    loss = trainer.training_step(batch)
    assert torch.isfinite(loss.detach().float().cpu())
    loss.backward()
    gradient = model.layer.weight.grad
    assert gradient is not None
    assert gradient.device.type == target.device
    assert not [k for k, on in model.cast.items() if on and k != target.device]
