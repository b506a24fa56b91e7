"""A single-file checkpoint, with what lies beside it, into modules."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from acestep.checkpoint.components import (
    load_text_encoder,
    load_tokenizer,
    load_vae,
    silence_latent,
)
from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.modules import Place, Put, component_classes, empty, fill, finish
from acestep.checkpoint.original import original_modules, original_name
from acestep.checkpoint.single.beside import (
    folder_beside,
    part_beside,
    silence_files,
    tokenizer_folders,
)
from acestep.checkpoint.single.configs import dit_config, text_config, vae_blocks, vae_config
from acestep.checkpoint.single.parts import (
    DIT,
    FLOATS,
    QWEN_VOCABULARY,
    TEXT_ENCODER,
    VAE,
    Part,
    oobleck_name,
    parts_of,
)
from acestep.corrections.empty_weights import without_storage
from acestep.device import DevicePolicy
from acestep.errors import CheckpointError, first_line

log = logging.getLogger("acestep.checkpoint")

Say = Callable[[str], None]
Convert = Callable[[torch.Tensor], torch.Tensor]

SILENT_FRAMES = 15000
"""Ten minutes, as many as published checkpoints store."""

_MADE_OF = 32
"""Frames of silence that its latent is made of: within what any device's convolution takes, and
with a middle frame that the encoder reads no edge for."""

_SPARE_ROWS = 1024
"""Embeddings may be padded by this many rows beyond their tokenizer's vocabulary."""


def load_single(
    checkpoint: Checkpoint, policy: DevicePolicy, say: Say, put: Put | None = None
) -> dict[str, Any]:
    """Load a single-file checkpoint; see `checkpoint.loading.load`.

    Raises:
        CheckpointError: a part is missing here and beside the file, or one does not fit.
    """
    file = checkpoint.path
    parts = parts_of(file)
    if DIT not in parts:
        raise CheckpointError(
            f"{file}: holds {' and '.join(sorted(parts)) or 'no part'} of an ACE-Step 1.5 "
            "checkpoint; give the file with the DiT"
        )
    config = dit_config(parts[DIT])
    say("transformer")
    modules = original_modules(config, parts[DIT].shapes, file)
    _fill_dit(parts[DIT], modules, policy, put)
    say("vae")
    vae = _vae(parts, file, config["audio_acoustic_hidden_dim"], policy, put)
    silence = _stored_silence(checkpoint, config["timbre_hidden_dim"])
    if silence is None and put is None:
        silence = _made_silence(checkpoint, vae)
    modules["condition_encoder"].register_buffer("silence_latent", silence)
    for module in modules.values():
        finish(module, policy, "dit")
    say("text_encoder")
    text_encoder, tokenizer = _text(parts, checkpoint, config["text_hidden_dim"], policy, put)
    absent = {"audio_tokenizer": None, "audio_token_detokenizer": None}
    return {**absent, **modules, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}


def _fill_dit(
    part: Part, modules: dict[str, nn.Module], policy: DevicePolicy, put: Put | None
) -> None:
    def place(name: str) -> tuple[nn.Module, str] | None:
        target = original_name(name)
        if target is None or target[0] not in modules:
            return None
        return modules[target[0]], target[1]

    del modules["condition_encoder"]._buffers["silence_latent"]
    wanted = {(id(module), name) for module in modules.values() for name in module.state_dict()}
    _fill(part, place, wanted, policy, "dit", put)


def _vae(
    parts: dict[str, Part], file: Path, channels: int, policy: DevicePolicy, put: Put | None
) -> nn.Module:
    def fits(part: Part) -> bool:
        return bool(vae_config(part)["decoder_input_channels"] == channels)

    part = parts.get(VAE) or part_beside(file, VAE, fits)
    if part is None:
        folder = folder_beside(file, VAE, lambda c: c.get("decoder_input_channels") == channels)
        if folder is None:
            raise CheckpointError(_missing(file, VAE, "ace_1.5_vae.safetensors"))
        return load_vae(folder, policy, put)
    blocks = vae_blocks(part)
    module = empty(component_classes()["vae"], vae_config(part), part.file)
    wanted = {(id(module), name) for name in module.state_dict()}
    _fill(part, lambda name: (module, oobleck_name(name, blocks)), wanted, policy, "vae", put)
    return finish(module, policy, "vae")


def _text(
    parts: dict[str, Part],
    checkpoint: Checkpoint,
    width: int,
    policy: DevicePolicy,
    put: Put | None,
) -> tuple[nn.Module, Any]:
    """The text encoder with a tokenizer that goes with it."""
    file = checkpoint.path

    def fits(part: Part) -> bool:
        # Qwen3 0.6B itself, which other models use, has more rows than the embedding model.
        config = text_config(part)
        return bool(config["hidden_size"] == width and config["vocab_size"] != QWEN_VOCABULARY)

    part = parts.get(TEXT_ENCODER) or part_beside(file, TEXT_ENCODER, fits)
    if part is None:
        folder = folder_beside(file, TEXT_ENCODER, lambda c: c.get("hidden_size") == width)
        if folder is None:
            raise CheckpointError(_missing(file, TEXT_ENCODER, "qwen_0.6b_ace15.safetensors"))
        module = load_text_encoder(folder, policy, put)
    else:
        module = _text_encoder(part, policy, put)
    rows = int(module.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    for folder in tokenizer_folders(part.file if part is not None else file):
        tokenizer = load_tokenizer(folder)
        if rows - _SPARE_ROWS < len(tokenizer) <= rows:
            return module, tokenizer
    raise CheckpointError(
        f"{file}: single files hold no tokenizer, and none for {rows} tokens is beside it or in "
        "another checkpoint; put tokenizer.json and tokenizer_config.json of Qwen3-Embedding-0.6B "
        "beside it, or fetch it with: acestep download turbo"
    )


def _text_encoder(part: Part, policy: DevicePolicy, put: Put | None) -> nn.Module:
    from transformers import Qwen3Config, Qwen3Model

    try:
        with without_storage():
            module: nn.Module = Qwen3Model(Qwen3Config(**text_config(part)))
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, KeyError) as error:
        raise CheckpointError(
            f"{part.file}: its shapes do not describe a Qwen3 model ({first_line(error)})"
        ) from None
    wanted = {(id(module), name) for name in module.state_dict()}
    _fill(part, lambda name: (module, name), wanted, policy, "text_encoder", put)
    for name, buffer in module.named_buffers():
        # Rotary frequencies stay in float32, as transformers keeps them.
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = buffer.to(policy.device)
    return module.eval().requires_grad_(False)


def _fill(
    part: Part,
    place: Callable[[str], tuple[nn.Module, str] | None],
    wanted: set[tuple[int, str]],
    policy: DevicePolicy,
    component: str,
    put: Put | None,
) -> None:
    """Read a part's tensors, scaled where they are stored small."""
    for name, entry in part.tensors.items():
        if entry.dtype not in FLOATS:
            raise CheckpointError(
                f"{part.file}: '{part.prefix}{name}' is stored as {entry.dtype}, expected "
                "bfloat16, float16, float32 or float8"
            )
    converts = scaled(part)

    def placed(key: str) -> Place | None:
        name = key.removeprefix(part.prefix)
        target = place(name)
        if target is None:
            return None
        convert = converts.get(name)
        if convert is None and name.rpartition(".")[2] in ("alpha", "beta"):
            # stable-audio-tools keeps a number a channel, diffusers a row of them.
            convert = _as_row
        return Place(*target, convert)

    fill(
        [part.file],
        placed,
        wanted,
        policy,
        part.file,
        component,
        skip=lambda key: (
            not key.startswith(part.prefix) or key.removeprefix(part.prefix) not in part.tensors
        ),
        by_host=any(entry.dtype.startswith("F8") for entry in part.tensors.values()),
        put=put,
    )


def scaled(part: Part) -> dict[str, Convert]:
    """By name, what brings a scaled weight to its size.

    Raises:
        CheckpointError: a scale fits no weight.
    """
    made: dict[str, Convert] = {}
    with safe_open(part.file, framework="pt") as tensors:
        for name, key in part.scales.items():
            if name not in part.tensors:
                raise CheckpointError(f"{part.file}: '{key}' is a scale of nothing")
            scale = tensors.get_tensor(key).float()
            rows = part.tensors[name].shape[0]
            if scale.numel() not in (1, rows):
                raise CheckpointError(
                    f"{part.file}: '{key}' has shape {tuple(scale.shape)}, expected one scale or "
                    f"one for each of {rows} rows"
                )
            made[name] = _times(scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(()))
    return made


def _times(scale: torch.Tensor) -> Convert:
    return lambda stored: stored.float() * scale


def _as_row(stored: torch.Tensor) -> torch.Tensor:
    return stored.reshape(1, -1, 1)


def _stored_silence(checkpoint: Checkpoint, channels: int) -> torch.Tensor | None:
    """Latents of silence, `[1, frames, channels]`, from the nearest file that has them."""
    for file in silence_files(checkpoint.path):
        latent = silence_latent(file)
        if latent.shape[-1] == channels:
            return latent
    return None


def _made_silence(checkpoint: Checkpoint, vae: Any) -> torch.Tensor:
    weight = next(vae.parameters())

    def encode(audio: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = vae.encode(audio[None].to(weight.device, weight.dtype))[0].mean
        return latents[0].mT.float().cpu()

    with torch.no_grad():
        return silence_by(checkpoint, vae.config, encode)


def silence_by(
    checkpoint: Checkpoint, config: Any, encode: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Latents of silence, `[1, frames, channels]`, as a VAE makes them; a warning says so.

    Args:
        checkpoint: which has none stored.
        config: the VAE's.
        encode: from audio `[channels, samples]` to latents `[frames, channels]`.
    """
    samples = _MADE_OF * math.prod(config.downsampling_ratios)
    latents = encode(torch.zeros(config.audio_channels, samples))
    log.warning(
        "%s: no silence_latent.pt beside it or in another checkpoint; silence is what its VAE "
        "makes of it",
        checkpoint.path,
    )
    return (
        latents[None, _MADE_OF // 2 : _MADE_OF // 2 + 1].expand(-1, SILENT_FRAMES, -1).contiguous()
    )


def _missing(file: Path, kind: str, name: str) -> str:
    return (
        f"{file}: has no {kind}, and none that fits is beside it or in another checkpoint; put "
        f"{name} beside it, or fetch it with: acestep download turbo"
    )
