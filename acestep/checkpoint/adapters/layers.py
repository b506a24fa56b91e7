"""A linear layer with an update that peft has no layer for: LoKr and LoHa, also with magnitudes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from acestep.checkpoint.adapters.updates import Update


class AdaptedLinear(nn.Module):
    """Adds an update to a linear layer, which itself stays as it is.

    Args:
        base: the layer.
        update: fits its weight; the factors are brought to its device and dtype.
    """

    gain: torch.Tensor | None

    def __init__(self, base: nn.Linear, update: Update) -> None:
        super().__init__()
        self.base_layer = base
        self.update = type(update)
        self.own_scale, self.scale = update.scale, 1.0
        self.names = list(update.factors())
        for name, factor in update.factors().items():
            self.register_buffer(name, factor.to(base.weight))
        magnitude = update.magnitude
        self.magnitude = None if magnitude is None else magnitude.to(base.weight.device).float()
        self.register_buffer("gain", None)
        self.set_scale(1.0)

    def set_scale(self, scale: float) -> None:
        """How much of the update is applied, 0 for none: the layer is then the base layer."""
        self.scale = scale
        if self.magnitude is not None:
            factors = {name: factor.float() for name, factor in self._factors().items()}
            weight = self.base_layer.weight
            merged = weight.float() + scale * self.own_scale * self.update.dense(factors)
            # Rows have one magnitude each where it is a column, and the other way round.
            along = 1 if self.magnitude.shape[1] == 1 else 0
            norm = torch.linalg.vector_norm(merged, dim=along, keepdim=True)
            self.gain = (self.magnitude.to(norm.device) / norm).to(weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's outputs for inputs `[..., in]`."""
        made: torch.Tensor
        scale = self.scale * self.own_scale
        if self.scale == 0 or self.gain is None:
            made = self.base_layer(inputs)
            if self.scale:
                made = made + scale * self.update.apply(self._factors(), inputs)
            return made
        by_row = self.gain.shape[1] == 1
        if not by_row:
            inputs = inputs * self.gain[0]
        made = F.linear(inputs, self.base_layer.weight)
        made = made + scale * self.update.apply(self._factors(), inputs)
        if by_row:
            made = made * self.gain[:, 0]
        bias = self.base_layer.bias
        return made if bias is None else made + bias

    def _factors(self) -> dict[str, torch.Tensor]:
        return {name: self.get_buffer(name) for name in self.names}
