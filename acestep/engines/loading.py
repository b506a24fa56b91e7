"""A checkpoint as the engine that the device's policy names."""

from __future__ import annotations

from collections.abc import Callable

from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.sizes import held_gib
from acestep.checkpoint.small import Pack
from acestep.device import DevicePolicy
from acestep.engines.protocol import Engine
from acestep.engines.torch.loading import Options, flash_attention_problem
from acestep.errors import RequestError

__all__ = ["Options", "check_room", "flash_attention_problem", "load_engine", "packing"]


def packing(policy: DevicePolicy) -> Pack:
    """How the policy's engine holds a weight in the policy's few bits, for
    `checkpoint.small.saved_small`."""
    kind = str(policy.quantization)
    if policy.on_mlx:
        from acestep.engines.mlx import quantised

        bits = quantised.bits_of(kind)
        return lambda weight: quantised.packed(weight, bits)
    from acestep.engines.torch.quantised import packed

    return lambda weight: dict(zip(("weight", "scale"), packed(weight, kind), strict=True))


def load_engine(
    checkpoint: Checkpoint,
    policy: DevicePolicy,
    options: Options,
    on_component: Callable[[str], None] | None = None,
) -> Engine:
    """The engine of a checkpoint; see the `load_engine` of each.

    Args:
        checkpoint: what `finding.find` returned.
        policy: where it runs, in which engine and at what precision.
        options: checked before.
        on_component: told the name of each component before it is loaded.

    Raises:
        RequestError: its weights are more than the memory that MLX may use.
        CheckpointError: a file is missing, damaged, or does not fit the architecture.
        GenerationError: it does not fit into memory.
    """
    if policy.on_mlx:
        from acestep.engines.mlx.loading import load_engine as load_mlx

        check_room(checkpoint, policy)

        return load_mlx(checkpoint, policy, options, on_component)
    from acestep.engines.torch.loading import load_engine as load_torch

    return load_torch(checkpoint, policy, options, on_component)


def check_room(checkpoint: Checkpoint, policy: DevicePolicy) -> None:
    """Refuse weights for which MLX has no room, before macOS would end the process for them.

    Raises:
        RequestError: says how much they need, and in how few bits they would fit.
        CheckpointError: a file is missing or damaged.
    """
    whole = checkpoint.held is None
    bits = {"int8": 8, "int4": 4}.get(policy.quantization or "") if whole else None
    needed, free = held_gib(checkpoint, policy, bits), policy.free_memory
    if needed <= free:
        return
    fewer = (
        f"--quantize {few} takes {size:.1f}"
        for few in (8, 4)
        if whole and few < (bits or 16) and (size := held_gib(checkpoint, policy, few)) <= free
    )
    advice = next(fewer, "take a smaller checkpoint")
    raise RequestError(
        f"the checkpoint {checkpoint.name} needs {needed:.1f} GiB and {policy.name} has {free:.1f} "
        f"GiB free; {advice}, or close other programs"
    )
