"""The components of a checkpoint that have a folder of their own: VAE, text encoder, tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep.checkpoint.files import STEMS, header, read_json, weight_files
from acestep.checkpoint.modules import Place, Put, Room, component_classes, empty, fill, finish
from acestep.checkpoint.pretrained import empty_pretrained, load_pretrained
from acestep.device import DevicePolicy
from acestep.errors import CheckpointError, first_line


def load_vae(folder: Path, policy: DevicePolicy, put: Put | None = None) -> nn.Module:
    """The VAE in a folder, on the policy's device, or empty with its tensors put elsewhere.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit its config.
    """
    config = {k: v for k, v in read_json(folder / "config.json").items() if not k.startswith("_")}
    return load_component(component_classes()["vae"], folder, config, policy, "vae", put)


def load_component(
    cls: Any,
    folder: Path,
    config: dict[str, Any],
    policy: DevicePolicy,
    component: str,
    put: Put | None = None,
    room: Room | None = None,
) -> nn.Module:
    """A module of diffusers from its folder's weights.

    Args:
        cls: its class.
        folder: holds the weights.
        config: its config.
        policy: where it goes.
        component: decides the dtype.
        put: see `modules.fill`.
        room: see `modules.Room`.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the config.
    """
    module = empty(cls, config, folder / "config.json")
    if room is not None:
        room(module)
    files = weight_files(folder, STEMS)
    wanted = {(id(module), name) for name in module.state_dict()}
    fill(files, lambda key: Place(module, key), wanted, policy, folder, component, put=put)
    return finish(module, policy, component)


def silence_latent(file: Path) -> torch.Tensor:
    """The stored latents of silence, from `[1, channels, frames]` to `[1, frames, channels]`.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: missing file; the checkpoint is incomplete")
    try:
        latent = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001
        # Unpickling damaged bytes can raise nearly anything; all of it means this.
        raise CheckpointError(f"{file}: damaged ({type(error).__name__})") from None
    if not isinstance(latent, torch.Tensor) or latent.ndim != 3 or math.prod(latent.shape) == 0:
        raise CheckpointError(f"{file}: expected a tensor of shape [1, channels, frames]")
    return latent.transpose(1, 2).contiguous()


def load_text_encoder(
    folder: Path, policy: DevicePolicy, put: Put | None = None, room: Room | None = None
) -> nn.Module:
    """The Qwen3 model in a folder, on the policy's device, or empty with its tensors put elsewhere.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit its config.
    """
    from transformers import AutoModel

    read_json(folder / "config.json")
    files = weight_files(folder)
    if put is not None or room is not None:
        module = empty_pretrained(AutoModel, folder, "the text encoder")
        if room is not None:
            room(module)
        wanted = {(id(module), name) for name in module.state_dict()}
        fill(
            files,
            lambda key: Place(module, key.removeprefix("model.")),
            wanted,
            policy,
            folder,
            "text_encoder",
            # Of models that were stored with what makes tokens of their states.
            skip=lambda key: key == "lm_head.weight",
            put=put,
        )
        # Tables of positions are no part of a file.
        return module if put is not None else module.to(policy.device)
    for file in files:
        header(file)
    return load_pretrained(
        AutoModel, folder, "the text encoder", policy.dtype_of("text_encoder"), policy.device
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: missing folder; the checkpoint is incomplete")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001
        # The tokenizer libraries raise their own kinds, down to plain Exception.
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be loaded ({first_line(error)})"
        ) from None
