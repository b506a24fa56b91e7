"""Checkpoints of named sizes with random weights, so that a benchmark needs no download."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from acestep.checkpoint.folders import cache_dir
from acestep.checkpoint.kinds import Checkpoint
from acestep.corrections.weight_norm import old_weight_norm, without_copies
from acestep.demo.recipe import BUILTIN, DemoShape, build, make_tokenizer
from acestep.device import DevicePolicy
from acestep.engines.torch.engine import TorchEngine
from acestep.engines.torch.loading import make_small
from acestep.engines.torch.pipeline import Pipeline
from acestep.handler import AceStepHandler

SHAPES = ("demo", "wide", "turbo", "xl")
"""`demo` is the built-in checkpoint, `wide` a random one of four times its width; `turbo` and `xl`
have the sizes of ACE-Step 1.5's 2B and 4B models."""

_TURBO = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
# XL's width is the one diffusers documents; layers and heads are those that give 4B parameters.
_XL = _TURBO | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "encoder_hidden_size": 2048,
}
_TEXT = {
    "vocab_size": 151669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


SAVED = "acestep-v15-bench-turbo"
"""What `save` calls its folder; the name says that guidance is in the weights."""


def make_handler(shape: str, policy: DevicePolicy, *, compiled: bool = False) -> AceStepHandler:
    """A handler with random weights of a named size (one of `SHAPES`)."""
    handler = AceStepHandler()
    if shape in ("turbo", "xl"):
        _adopt_large(handler, shape, policy, compiled)
        return handler
    if shape == "demo":
        handler.load("demo", policy, compile_model=compiled)
        return handler
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "acestep-v15-wide-turbo"
        build(path, wide_shape())
        handler.load(str(path), policy, compile_model=compiled)
    return handler


def _adopt_large(handler: AceStepHandler, shape: str, policy: DevicePolicy, compiled: bool) -> None:
    pipeline = large_pipeline(policy, _XL if shape == "xl" else _TURBO)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.compiles = compiled
    if policy.quantization:
        make_small(pipeline, policy)
    checkpoint = Checkpoint(f"{shape}, random weights", cache_dir(), "diffusers")
    handler.adopt(TorchEngine(pipeline, policy), policy, checkpoint)


def save(handler: AceStepHandler, folder: Path) -> Path:
    """Write what a handler has loaded as a checkpoint in diffusers' layout, and say where."""
    from diffusers import AceStepPipeline

    assert handler.pipeline is not None
    path = folder / SAVED
    AceStepPipeline(**handler.pipeline.components).save_pretrained(path)
    return path


def wide_shape() -> DemoShape:
    """The built-in checkpoint's shape with every width four times as large."""
    widths = {
        name: 4 * getattr(BUILTIN, name)
        for name in (
            "hidden",
            "text_hidden",
            "condition_hidden",
            "token_hidden",
            "decoder_channels",
        )
    }
    return dataclasses.replace(BUILTIN, **widths)


def large_pipeline(policy: DevicePolicy, width: dict[str, int]) -> Pipeline:
    """Random weights at a published size, made where they are used."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.models import AceStepTransformer1DModel, AutoencoderOobleck
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Config, Qwen3Model

    def made(build_module: Callable[[], torch.nn.Module], component: str) -> torch.nn.Module:
        before = torch.get_default_dtype()
        torch.set_default_dtype(policy.dtype_of(component))
        try:
            with torch.device(policy.device), old_weight_norm():
                return build_module().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)

    torch.manual_seed(0)
    strides = [2, 4, 4, 6, 10]
    return Pipeline(
        vae=without_copies(
            made(
                lambda: AutoencoderOobleck(downsampling_ratios=strides, sampling_rate=48000), "vae"
            )
        ),
        text_encoder=made(lambda: Qwen3Model(Qwen3Config(**_TEXT)), "text_encoder"),
        tokenizer=make_tokenizer(1536),
        transformer=made(lambda: AceStepTransformer1DModel(**width, is_turbo=True), "dit"),
        condition_encoder=made(lambda: AceStepConditionEncoder(**_TURBO), "dit"),
        audio_tokenizer=made(lambda: AceStepAudioTokenizer(), "dit"),
        audio_token_detokenizer=made(lambda: AceStepAudioTokenDetokenizer(), "dit"),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
