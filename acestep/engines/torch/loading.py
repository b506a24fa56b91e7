"""A checkpoint's components as the pipeline that the torch engine runs."""

from __future__ import annotations

from torch import nn

from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.loading import Progress, load
from acestep.device import DevicePolicy
from acestep.diffusion.pipeline import Pipeline
from acestep.engines.torch.addresses import align


def load_pipeline(
    checkpoint: Checkpoint, policy: DevicePolicy, on_component: Progress | None = None
) -> Pipeline:
    """The pipeline of a checkpoint, on the policy's device.

    Args:
        checkpoint: what `finding.find` returned.
        policy: where the modules go and at what precision.
        on_component: told the name of each component before it is loaded.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the architecture.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    parts = load(checkpoint, policy, on_component)
    for part in parts.values():
        if isinstance(part, nn.Module):
            align(part)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    return Pipeline(scheduler=scheduler, **parts)
