"""Adapters merged into the weights of MLX's transformer, and taken out again to the bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from acestep.checkpoint.adapters.updates import Update
from acestep.engines.mlx.arrays import from_torch, to_torch
from acestep.engines.mlx.place import Place
from acestep.engines.mlx.transformer import Transformer


class Adapters:
    """One adapter at a time on a transformer; see `checkpoint.adapters.applying.Adapters`.

    The weights that it changes are kept beside the changed ones, so that no rounding stays
    behind: memory holds them twice while an adapter is there.

    Args:
        model: whose weights are changed.
        described: diffusers' module of the same shape, which may be empty.
        place: where MLX works.
    """

    def __init__(self, model: Transformer, described: torch.nn.Module, place: Place) -> None:
        self.transformer = described
        self._model, self._place = model, place
        self._updates: dict[str, Update] = {}
        self._base: dict[str, mx.array] = {}

    def ready(self) -> None:
        """Nothing but MLX is needed."""

    def is_on(self) -> bool:
        """Whether there is one, switched off or not."""
        return bool(self._updates)

    def put_on(self, updates: dict[str, Update]) -> None:
        """Take updates, by the layer's name; they count from the next `set_scale` on."""
        self._base = {name: self._layer(name)["weight"] for name in updates}
        self._updates = dict(updates)

    def set_scale(self, scale: float) -> None:
        """Apply this much of the adapter; at 0 the weights are those of before."""
        with self._place.working():
            for name, update in self._updates.items():
                base = self._base[name]
                layer = self._layer(name)
                layer["weight"] = merged(base, update, scale) if scale else base
                mx.eval(layer["weight"])

    def take_off(self) -> None:
        """Put the weights of before back in their places."""
        for name, base in self._base.items():
            self._layer(name)["weight"] = base
        self._updates, self._base = {}, {}

    def _layer(self, name: str) -> Any:
        found: Any = self._model
        for part in name.split("."):
            found = found[int(part)] if part.isdigit() else found[part]
        return found


def merged(base: mx.array, update: Update, scale: float) -> mx.array:
    """A weight `[out, in]` with an update, in the weight's precision.

    Args:
        base: the weight.
        update: fits it.
        scale: how much of the update.
    """
    with torch.inference_mode():
        factors = {name: factor.float().cpu() for name, factor in update.factors().items()}
        made = to_torch(base) + scale * update.scale * update.dense(factors)
        if update.magnitude is not None:
            # Rows have one magnitude each where it is a column, and the other way round.
            along = 1 if update.magnitude.shape[1] == 1 else 0
            norm = torch.linalg.vector_norm(made, dim=along, keepdim=True)
            made = made * (update.magnitude.float().cpu() / norm)
        return from_torch(made).astype(base.dtype)
