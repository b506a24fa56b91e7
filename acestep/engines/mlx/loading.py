"""A checkpoint's components as the MLX engine, or why it cannot be had."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from acestep.checkpoint.kinds import Checkpoint, is_xl
from acestep.checkpoint.loading import Progress, load
from acestep.checkpoint.single.loading import silence_by
from acestep.device import DevicePolicy
from acestep.engines.mlx import building
from acestep.engines.mlx.adapters import Adapters
from acestep.engines.mlx.arrays import dtype_of, to_torch
from acestep.engines.mlx.codec import Codec
from acestep.engines.mlx.engine import MlxEngine, Parts, without_device
from acestep.engines.mlx.place import Place
from acestep.engines.mlx.quantised import bits_of, make_room, quantise
from acestep.engines.protocol import Traits
from acestep.engines.torch.loading import Options
from acestep.errors import RequestError


def load_engine(
    checkpoint: Checkpoint,
    policy: DevicePolicy,
    options: Options,
    on_component: Progress | None = None,
) -> MlxEngine:
    """The engine of a checkpoint.

    Tensors go from the files to MLX one at a time, those that are to have few bits through a
    layer's worth of memory.

    Args:
        checkpoint: what `finding.find` returned.
        policy: where it runs and at what precision.
        options: what of them MLX has.
        on_component: told the name of each component before it is loaded.

    Raises:
        RequestError: an option, precision or device that MLX does not have.
        CheckpointError: a file is missing, damaged, or does not fit the architecture.
        GenerationError: it does not fit into memory.
    """
    check(options)
    bits = bits_of(policy.quantization) if policy.quantization else None
    place = Place(policy)
    with place.working():
        shelf = building.Shelf()
        room = None if checkpoint.held is None else lambda module: make_room(module, bits or 0)
        found = load(checkpoint, without_device(policy), on_component, shelf, room)
        parts = parts_of(checkpoint, policy, found, shelf, place, options.compile_model)
        modules = [getattr(parts, name) for name in _STACKS]
        if bits is not None and checkpoint.held is None:
            for module in modules:
                if module is not None:
                    quantise(module, bits)
        for module in (*modules, parts.audio_tokenizer, parts.codec.vae):
            if module is not None:
                mx.eval(module.parameters())
    traits = Traits.of(found["transformer"], found["vae"], found["audio_tokenizer"])
    adapters = Adapters(parts.transformer, found["transformer"], place)
    return MlxEngine(parts, traits, policy, place, adapters, options.compile_model)


_STACKS = ("transformer", "condition_encoder", "text_encoder", "detokenizer")
"""What `checkpoint.loading.SMALL` names, as parts."""


def check(options: Options) -> None:
    """Refuse what MLX does not have.

    Raises:
        RequestError: names the option and what to do.
    """
    if options.offload != "none":
        raise RequestError(
            "offloading is pointless with MLX: the host and the device share their memory; leave "
            "it out"
        )
    if options.use_flash_attention:
        raise RequestError(
            "flash attention is a package for PyTorch, and MLX has its own; leave it out"
        )


def parts_of(
    checkpoint: Checkpoint,
    policy: DevicePolicy,
    found: dict[str, Any],
    shelf: building.Shelf,
    place: Place,
    compiles: bool,
) -> Parts:
    """The modules of a checkpoint, whose tensors are read when they are first needed.

    Args:
        checkpoint: for messages.
        policy: the device.
        found: diffusers' modules by component, empty.
        shelf: their tensors.
        place: where MLX works.
        compiles: fuse what can be fused.
    """
    encoder, vae = found["condition_encoder"], found["vae"]
    conditions = shelf.take(encoder)
    silence = conditions.pop("silence_latent", None)
    for network in (vae.encoder, vae.decoder):
        network.to(policy.dtype_of("vae"))
    codec = Codec(
        building.vae(vae, shelf.take(vae), place.ways(compiles)),
        vae,
        policy,
        dtype_of(policy.dtype_of("vae")),
    )
    tokenizer, restore = found["audio_tokenizer"], found["audio_token_detokenizer"]
    return Parts(
        building.transformer(found["transformer"], shelf.take(found["transformer"])),
        building.condition_encoder(encoder, conditions, is_xl(found["transformer"].config)),
        building.text_encoder(found["text_encoder"], shelf.take(found["text_encoder"])),
        building.audio_tokenizer(tokenizer, shelf.take(tokenizer)) if tokenizer else None,
        building.detokenizer(restore, shelf.take(restore)) if restore else None,
        codec,
        silence_of(checkpoint, silence, encoder, codec, vae),
        found["tokenizer"],
    )


def silence_of(
    checkpoint: Checkpoint, read: mx.array | None, encoder: Any, codec: Codec, vae: Any
) -> torch.Tensor:
    """Latents of silence, `[frames, channels]`, stored in one way or the other, or made."""
    if read is not None:
        return to_torch(read)[0]
    stored: torch.Tensor | None = encoder.silence_latent
    if stored is None:
        stored = silence_by(checkpoint, vae.config, codec.encode)
    return stored[0].float()
