"""How much memory a checkpoint's weights take, told by its files before any is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from acestep.checkpoint.files import stored, weight_files
from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.names import TEXT_ENCODER, VAE
from acestep.device import GIB, DevicePolicy
from acestep.device.budget import bytes_of

_PACKED = {"I8": 1, "U8": 1, "F8_E4M3": 1, "U32": 4}
"""Bytes of a number in what holds weights in few bits; all else is in the policy's precision."""


def held_gib(checkpoint: Checkpoint, policy: DevicePolicy, bits: int | None) -> float:
    """GiB of a checkpoint's weights in a policy's precision.

    Args:
        checkpoint: what `finding.find` returned.
        policy: the precision of what is not in few bits.
        bits: of the matrices of its stacks, in groups that share a scale, or None.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    total = 0.0
    for file, component in _files(checkpoint):
        item = policy.dtype_of(component).itemsize
        for name, entry in stored(file).items():
            numbers = math.prod(entry.shape)
            if checkpoint.held is not None:
                total += numbers * _PACKED.get(entry.dtype, item)
                continue
            in_stack = ".layers." in f".{name}" and len(entry.shape) == 2
            total += numbers * bytes_of(bits if in_stack else None, item)
    return total / GIB


def _files(checkpoint: Checkpoint) -> Iterator[tuple[Path, str]]:
    """The files of weights, and of which component's precision they are."""
    path = checkpoint.path
    if checkpoint.layout == "single":
        yield path, "dit"
    elif checkpoint.layout == "original":
        yield from ((file, "dit") for file in weight_files(path))
        for name, component in ((VAE, "vae"), (TEXT_ENCODER, "text_encoder")):
            for file in sorted((path.parent / name).glob("*.safetensors")):
                yield file, component
    else:
        for file in sorted(path.glob("*/*.safetensors")):
            yield file, "vae" if file.parent.name == VAE else "dit"
