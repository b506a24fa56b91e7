"""A checkpoint's components as the torch engine, or why it cannot be had."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass

import torch
from torch import nn

from acestep.checkpoint.kinds import Checkpoint, is_xl
from acestep.checkpoint.loading import SMALL, Progress, load
from acestep.corrections.timbre import hear_special_token
from acestep.device import DevicePolicy, resolve
from acestep.engines.torch.addresses import align
from acestep.engines.torch.engine import TorchEngine, out_of_memory
from acestep.engines.torch.pipeline import Pipeline
from acestep.engines.torch.quantised import quantise
from acestep.errors import GenerationError, RequestError


@dataclass(frozen=True)
class Options:
    """How a checkpoint is to be run.

    Attributes:
        use_flash_attention: attention through the flash-attn package.
        compile_model: compile the transformer's layers and the VAE's decoder on first use.
        offload: what waits on the host while it is idle: `none`, `dit` or `all`.
    """

    use_flash_attention: bool = False
    compile_model: bool = False
    offload: str = "none"

    def check(self, policy: DevicePolicy) -> None:
        """Refuse what the device or this installation does not have.

        Raises:
            RequestError: names the option and what to do.
        """
        if self.offload != "none" and policy.unified_memory:
            raise RequestError(
                f"offloading is pointless on {policy.name}: the host and the device share their "
                "memory; leave it out"
            )
        if self.use_flash_attention and (problem := flash_attention_problem(policy)):
            raise RequestError(f"flash attention is not available: {problem}; leave it out")


def flash_attention_problem(policy: DevicePolicy) -> str | None:
    """Why the flash-attn package cannot be used, or None."""
    if not policy.has_flash_attention:
        return f"it does not run on {policy.name}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    return None


def load_engine(
    checkpoint: Checkpoint,
    policy: DevicePolicy,
    options: Options,
    on_component: Progress | None = None,
) -> TorchEngine:
    """The engine of a checkpoint.

    Args:
        checkpoint: what `finding.find` returned.
        policy: where it runs and at what precision.
        options: checked before.
        on_component: told the name of each component before it is loaded.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the architecture.
        GenerationError: it does not fit into memory.
    """
    # With offloading, weights go to the host first and visit the device in turn. So they do to be
    # made small: the device never holds them in full.
    visits = options.offload == "all"
    shrinks = policy.quantization is not None and checkpoint.held is None
    home = resolve("cpu") if visits or shrinks else policy
    placed = dataclasses.replace(policy, device=home.device)
    try:
        with policy.current():
            pipeline = load_pipeline(checkpoint, placed, on_component)
            if shrinks:
                make_small(pipeline, placed if visits else policy)
            if options.use_flash_attention:
                pipeline.transformer.set_attention_backend("flash")
            pipeline.compiles = options.compile_model
            return TorchEngine(pipeline, policy, options.offload)
    except torch.OutOfMemoryError as error:
        raise GenerationError(out_of_memory(policy, error)) from None


def make_small(pipeline: Pipeline, policy: DevicePolicy) -> None:
    """Hold the transformers' weights as the policy says, and bring all modules to its device."""
    assert policy.quantization is not None
    for name in SMALL:
        if (module := getattr(pipeline, name)) is not None:
            quantise(module, policy.quantization, policy)
    pipeline.to(policy.device)


def load_pipeline(
    checkpoint: Checkpoint, policy: DevicePolicy, on_component: Progress | None = None
) -> Pipeline:
    """The modules of a checkpoint, on the policy's device.

    Args:
        checkpoint: what `finding.find` returned.
        policy: where the modules go and at what precision.
        on_component: told the name of each component before it is loaded.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the architecture.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    held = checkpoint.held
    room = None if held is None else lambda module: quantise(module, held.kind, policy)
    parts = load(checkpoint, policy, on_component, room=room)
    for part in parts.values():
        if isinstance(part, nn.Module):
            align(part)
    if is_xl(parts["transformer"].config):
        hear_special_token(parts["condition_encoder"].timbre_encoder)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    pipeline = Pipeline(scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
