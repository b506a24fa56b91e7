"""Weights of MLX modules in eight or four bits: made small as they are read, or kept in a file.

The form is MLX's own: each row in groups of 64 inputs, with a scale and an offset for each group.
Only the layers of a stack are changed: what embeds, and what leaves a model, is small and
sensitive.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from acestep.errors import CheckpointError, RequestError, first_line

GROUP = 64
"""Inputs that share a scale and an offset."""

BITS = {"int8": 8, "int4": 4}
"""What a policy's quantization means here."""

_FORMAT = "acestep-mlx-quantised"

Wanted = Callable[[str, nn.Module], bool]
"""Of a module's path and the module: whether it is to be made small."""


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


def save(module: nn.Module, file: Path, bits: int) -> None:
    """Write a module's parameters, some of them in few bits, as a safetensors file."""
    parameters: Any = tree_flatten(module.parameters())
    described = {"format": _FORMAT, "bits": str(bits), "group": str(GROUP)}
    mx.save_safetensors(str(file), dict(parameters), described)


def load(module: nn.Module, file: Path) -> nn.Module:
    """Put what `save` wrote into a module of the same shape, full or empty.

    Returns:
        the module itself, of which nothing is read before it is needed.

    Raises:
        CheckpointError: the file is missing or damaged, is none of `save`, or does not fit.
    """
    try:
        found: Any = mx.load(str(file), return_metadata=True)
        weights, described = found
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as weights ({first_line(error)})") from None
    if described.get("format") != _FORMAT or not described.get("bits", "").isdigit():
        raise CheckpointError(f"{file}: holds no weights in few bits that were saved here")
    if described.get("group") != str(GROUP):
        raise CheckpointError(
            f"{file}: its weights have groups of {described.get('group')}, expected {GROUP}"
        )
    nn.quantize(
        module,
        GROUP,
        int(described["bits"]),
        class_predicate=lambda path, _: f"{path}.scales" in weights,
    )
    try:
        module.load_weights(list(weights.items()))
    except ValueError as error:
        raise CheckpointError(f"{file}: does not fit this model ({first_line(error)})") from None
    return module
