"""Weights of MLX modules in eight or four bits: made small as they are read, or read so.

The form is MLX's own: each row in groups of 64 inputs, with a scale and an offset for each group.
Only the layers of a stack are changed: what embeds, and what leaves a model, is small and
sensitive.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import torch
from mlx import nn

from acestep.checkpoint.small import GROUP, Hollow, put_in, small_layers
from acestep.engines.mlx.arrays import as_stored, from_torch
from acestep.errors import RequestError

BITS = {"int8": 8, "int4": 4}
"""What a policy's quantization means here."""

Wanted = Callable[[str, nn.Module], bool]
"""Of a module's path and the module: whether it is to be made small."""


__all__ = ["BITS", "GROUP", "bits_of", "in_stack", "make_room", "packed", "quantise"]


def bits_of(kind: str) -> int:
    """How many bits a policy's quantization asks for.

    Raises:
        RequestError: MLX has no such form.
    """
    if kind not in BITS:
        raise RequestError(f"quantization '{kind}' is not available in MLX; use int8 or int4")
    return BITS[kind]


def in_stack(path: str, module: nn.Module) -> bool:
    """Whether a module is a linear layer of a stack, whose rows are whole groups."""
    linear = type(module) is nn.Linear and "layers." in path
    return linear and module["weight"].shape[1] % GROUP == 0


def quantise(module: nn.Module, bits: int, wanted: Wanted = in_stack) -> nn.Module:
    """Put linear layers of a module into few bits, in place.

    Weights that have not been read yet are read one layer at a time, so that memory never holds
    the model in full.

    Args:
        module: whose layers are changed.
        bits: 8 or 4.
        wanted: which of them.

    Returns:
        the module itself.
    """
    nn.quantize(module, GROUP, bits, class_predicate=wanted)
    for _, part in module.named_modules():
        if isinstance(part, nn.QuantizedLinear):
            mx.eval(part.parameters())
    return module


def packed(weight: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """What a quantised layer holds of a weight `[outputs, inputs]` of PyTorch, by its names."""
    held, scales, biases = mx.quantize(from_torch(weight), GROUP, bits)
    mx.eval(held, scales, biases)
    parts = {"weight": held, "scales": scales, "biases": biases}
    return {name: as_stored(part) for name, part in parts.items()}


def make_room(module: torch.nn.Module, bits: int) -> None:
    """Give a module of PyTorch, which is empty, places for what `packed` makes of its layers."""
    for path, linear in list(small_layers(module)):
        outputs, inputs = linear.weight.shape
        groups = (outputs, inputs // GROUP), torch.float32
        room = {"scales": groups, "biases": groups}
        put_in(
            module, path,
            Hollow(linear, {"weight": ((outputs, inputs * bits // 32), torch.uint32), **room}),
        )  # fmt: skip
