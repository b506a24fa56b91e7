"""A checkpoint as the engine that the device's policy names."""

from __future__ import annotations

from collections.abc import Callable

from acestep.checkpoint.kinds import Checkpoint
from acestep.device import DevicePolicy
from acestep.engines.protocol import Engine
from acestep.engines.torch.loading import Options, flash_attention_problem

__all__ = ["Options", "flash_attention_problem", "load_engine"]


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
        CheckpointError: a file is missing, damaged, or does not fit the architecture.
        GenerationError: it does not fit into memory.
    """
    if policy.on_mlx:
        from acestep.engines.mlx.loading import load_engine as load_mlx

        return load_mlx(checkpoint, policy, options, on_component)
    from acestep.engines.torch.loading import load_engine as load_torch

    return load_torch(checkpoint, policy, options, on_component)
