"""Linear layers whose weights are held in eight or four bits.

| kind | a weight is held as | a product |
| --- | --- | --- |
| int8 | a whole number of 8 bits, a scale for each output | in the input's precision, the weight made that first |
| int4 | a whole number of 4 bits, a scale for each 64 inputs | the same |
| fp8 | a float of 8 bits (e4m3), a scale for each output | the same |
| w8a8 | as int8 | of whole numbers: the input gets a scale for each row on the way |

A scale is a number that bfloat16 holds exactly, so that nothing is lost by it. Only the layers
of a stack are changed: what embeds, and what leaves a model, is small and sensitive.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from acestep.checkpoint.small import GROUP, put_in, small_layers
from acestep.device import DevicePolicy

_LARGEST = {"int8": 127.0, "w8a8": 127.0, "int4": 7.0, "fp8": 448.0}
# Rows from which a product of whole numbers is allowed, and the multiple of rows and outputs
# (cuBLAS). Layers of other widths, which only toys have, are computed as in int8, on every device.
_FEWEST_ROWS, _MULTIPLE = 17, 8


class Quantised(nn.Module):
    """A linear layer with a weight in few bits.

    Args:
        weight: `[outputs, inputs]`, floating point; made small where it lies.
        bias: `[outputs]`, or None.
        kind: see this module.
        packed_rows: up to so many rows PyTorch's product with packed weights is the quicker one.

    Attributes:
        weight: int8 or float8 `[outputs, inputs]`; in four bits uint8 `[outputs, inputs / 2]`.
        scale: bfloat16 `[outputs]`, in four bits `[outputs, inputs / GROUP]`.
    """

    as_stored = True
    """Its tensors keep the dtypes that they are stored in."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, kind: str, packed_rows: int = 0
    ) -> None:
        super().__init__()
        self.kind, self.packed_rows = kind, packed_rows
        self.out_features, self.in_features = weight.shape
        held, scale = packed(weight, kind)
        self.register_buffer("weight", held)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """`[…, inputs]` to `[…, outputs]`, in the input's dtype."""
        rows = given.reshape(-1, given.shape[-1])
        made = self._product(rows)
        if self.bias is not None:
            made = made + self.bias.to(made.dtype)
        shape = (*given.shape[:-1], self.out_features)
        return made.reshape(shape)

    def extra_repr(self) -> str:
        """What is printed of the layer."""
        return f"{self.in_features}, {self.out_features}, kind={self.kind}"

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        if self.kind == "w8a8" and self.out_features % _MULTIPLE == 0:
            return self._whole_product(rows)
        if self.kind == "int4":
            return F.linear(rows, unpacked(self.weight, self.scale, rows.dtype))
        if self.kind == "int8" and len(rows) <= self.packed_rows and rows.dtype != torch.float32:
            made: torch.Tensor = torch.ops.aten._weight_int8pack_mm(
                rows.contiguous(), self.weight, self.scale.to(rows.dtype)
            )
            return made
        scale = self.scale.to(rows.dtype)
        if len(rows) < self.out_features:
            return F.linear(rows, self.weight.to(rows.dtype)) * scale
        return F.linear(rows, self.weight.to(rows.dtype) * scale[:, None])

    def _whole_product(self, rows: torch.Tensor) -> torch.Tensor:
        top = rows.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / 127
        whole = (rows / top).round_().to(torch.int8)
        count = max(len(rows), _FEWEST_ROWS)
        spare = count + -count % _MULTIPLE - len(rows)
        if spare:
            whole = F.pad(whole, (0, 0, 0, spare))
        made = torch._int_mm(whole, self.weight.T)[: len(rows)]
        return (made * top).mul_(self.scale).to(rows.dtype)


def packed(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight `[outputs, inputs]` in few bits, and its scales; see `Quantised`."""
    exact = weight.detach().float()
    if kind == "int4":
        exact = exact.reshape(len(exact), -1, GROUP)
    # Rounded up, so that the largest weight stays within the range.
    scale = exact.abs().amax(-1) / _LARGEST[kind]
    scale = (scale * (1 + 2.0**-7)).clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16()
    exact = exact / scale.float()[..., None]
    if kind == "fp8":
        return exact.to(torch.float8_e4m3fn), scale
    whole = exact.round_().clamp_(-_LARGEST[kind], _LARGEST[kind])
    if kind != "int4":
        return whole.to(torch.int8), scale
    nibbles = (whole.flatten(1) + 8).to(torch.uint8)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale


def unpacked(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight of four bits as `[outputs, inputs]` in a floating dtype."""
    nibbles = torch.stack([weight & 15, weight >> 4], dim=-1).flatten(1)
    whole = nibbles.to(dtype).sub_(8).reshape(len(weight), -1, GROUP)
    return whole.mul_(scale.to(dtype)[..., None]).flatten(1)


def quantise(module: nn.Module, kind: str, policy: DevicePolicy) -> nn.Module:
    """Put the layers of a module's stacks into few bits, in place, one after the other.

    Each weight goes to the policy's device by itself, so that memory there never holds the
    model in full; the rest of the module stays where it is.

    Args:
        module: with stacks of layers called `layers`; in an empty one there is room then for what
            is stored so.
        kind: see this module.
        policy: where the weights go.

    Returns:
        the module itself.
    """
    for path, linear in list(small_layers(module)):
        device = linear.weight.device if linear.weight.is_meta else policy.device
        weight = linear.weight.to(device)
        bias = None if linear.bias is None else linear.bias.to(device)
        put_in(module, path, Quantised(weight, bias, kind, policy.packed_rows))
        # What the layer had is freed before the next one is read.
        linear.register_parameter("weight", None)
    return module


def joined(*layers: Quantised) -> Quantised:
    """One layer over an input that several share; they are views of it from here on."""
    first = layers[0]
    made: Quantised = Quantised.__new__(Quantised)
    nn.Module.__init__(made)
    made.kind, made.packed_rows = first.kind, first.packed_rows
    sizes = [layer.out_features for layer in layers]
    made.in_features, made.out_features = first.in_features, sum(sizes)
    made.register_buffer("weight", torch.cat([layer.weight for layer in layers]))
    made.register_buffer("scale", torch.cat([layer.scale for layer in layers]))
    made.register_buffer("bias", None)
    parts = zip(torch.split(made.weight, sizes), torch.split(made.scale, sizes), strict=True)
    for layer, (weight, scale) in zip(layers, parts, strict=True):
        layer.weight, layer.scale = weight, scale
    return made


def are_alike(*layers: nn.Module) -> bool:
    """Whether layers can be joined: in few bits all, of one kind, and without a bias."""
    kinds = {layer.kind if isinstance(layer, Quantised) else None for layer in layers}
    return None not in kinds and len(kinds) == 1 and all(layer.bias is None for layer in layers)
