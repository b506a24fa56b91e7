"""S7: a training step casts for the device it runs on."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conformance.tree import Absent, Blocked, attribute
from conformance.trees.asking import Asking, Told, Wrong, filled
from conformance.trees.missing import load
from conformance.trees.sources import Found, find

STEPS = ("training_step", "train_step", "compute_loss")
WIDTH = 8


class Layer(torch.nn.Module):
    """Stands for a model to be trained: linear layers under the names that adapters look for."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "layer"):
            self.add_module(name, torch.nn.Linear(WIDTH, WIDTH))
        self.config = SimpleNamespace(data_proportion=0.5, timestep_mu=0.0, timestep_sigma=1.0)

    def forward(self, hidden_states: Any = None, **_: Any) -> Any:
        """The state itself, through one layer."""
        return self.get_submodule("layer")(hidden_states)


class Model(Layer):
    """The same with a decoder, where trees keep the part that they train."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Layer()


def cast_for_the_device(ask: Asking) -> Told:
    """No trainer's step enters another device's autocast."""
    judged: list[Told] = []
    blocked: list[Blocked] = []
    for other in _trainers(ask):
        try:
            cls = attribute(load(ask.tree, other.module), other.name)
            judged.append(_judge(ask, other.place, cls))
        except Blocked as error:
            blocked.append(Blocked(f"{other.name} is not asked: {error}", error.library))
        except Absent:
            continue
    if not judged:
        raise blocked[0] if blocked else Absent("the tree's trainers cannot be had by name")
    said = [told.sentence for told in judged] + [str(error) for error in blocked]
    return Told(judged[0].place, "; ".join(said))


def _trainers(ask: Asking) -> list[Found]:
    """The classes that take training steps; `training.trainer`'s first."""

    def does(node: Any) -> bool:
        names = {getattr(part, "name", "") for part in getattr(node, "body", ())}
        return type(node).__name__ == "ClassDef" and "training_step" in names

    found = find(ask.tree, does, "training_step")
    if not found:
        raise Absent("the tree has no class with a training_step")
    return sorted(found, key=lambda other: not other.module.startswith("training."))


def _judge(ask: Asking, place: str, cls: Any) -> Told:
    device = torch.device(ask.target.device)
    known = {
        "model": Model(),
        "device": device,
        # Half precision: with the whole one, trees cast for nothing.
        "dtype": torch.bfloat16,
        "config": None,
        "precision": "bf16",
    }
    entered: list[tuple[str, str]] = []
    plain = torch.amp.autocast_mode.autocast.__init__

    def watched(self: Any, device_type: Any, *args: Any, **kwargs: Any) -> None:
        if not str(sys._getframe(1).f_globals.get("__name__", "")).startswith("conformance"):
            entered.append((str(device_type), ask.line(sys._getframe(1))))
        plain(self, device_type, *args, **kwargs)

    trainer = cls.__new__(cls)
    failed: Exception | None = None
    with torch.enable_grad(), ask.questions(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.amp.autocast_mode.autocast, "__init__", watched)
        try:
            trainer.__init__(**filled(cls, known))
        except Exception as error:  # noqa: BLE001 (the step is asked with what is there)
            failed = error
        entered.clear()
        # What it has entered until it fails is what is asked.
        with suppress(Exception):
            trainer.training_step(_batch(device))
    name = cls.__name__
    for kind, line in entered:
        if kind != device.type:
            raise Wrong(line or place, f"{name}'s step on {device.type} casts for {kind}")
    if not entered and failed is not None:
        library = failed.library if isinstance(failed, Blocked) else ""
        raise Blocked(f"{type(failed).__name__}: {failed}", library)
    cast = f"casts for {entered[0][0]}" if entered else "casts for no device"
    return Told(entered[0][1] if entered else place, f"{name}'s step {cast}")


def _batch(device: torch.device) -> dict[str, torch.Tensor]:
    state = torch.ones(2, 4, WIDTH)
    names = ("target_latents", "context_latents", "encoder_hidden_states", "latents")
    batch = dict.fromkeys(names, state)
    batch |= {name: torch.ones(2, 4) for name in ("attention_mask", "encoder_attention_mask")}
    return {name: value.to(device) for name, value in batch.items()}
