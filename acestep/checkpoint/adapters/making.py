"""New adapters for training, and the file they are stored in."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from acestep.checkpoint.adapters.reading import METADATA
from acestep.errors import RequestError
from acestep.song.audio_files import replacing

NAME = "acestep"
"""The adapter's name inside the transformer; there is one at a time."""

_PREFIX = "transformer."


def add_adapter(
    transformer: Any, rank: int, alpha: float, targets: Sequence[str], seed: int
) -> None:
    """Give a transformer a new adapter that changes nothing yet, and make only it trainable.

    Args:
        transformer: a `diffusers.AceStepTransformer1DModel`.
        rank: of each layer's update.
        alpha: the update's scale is alpha / rank.
        targets: the layers' names, or how they end.
        seed: of the first factor; the second is zero.

    Raises:
        RequestError: the package peft is not installed.
    """
    peft = peft_package()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):
        transformer.add_adapter(config, adapter_name=NAME)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_A" in name:
            # From the host and the name, so that a seed means the same adapter everywhere.
            key = zlib.crc32(f"{seed}/{name}".encode())
            drawn = torch.rand(parameter.shape, generator=torch.Generator("cpu").manual_seed(key))
            bound = parameter.shape[1] ** -0.5
            parameter.data = (drawn * 2 * bound - bound).to(parameter.device)
        elif "lora_B" in name:
            parameter.data = parameter.data.float()


def save_adapter(transformer: Any, path: Path) -> None:
    """Write the adapter in diffusers' format, as one safetensors file under any name.

    Raises:
        RequestError: the file cannot be written there.
    """
    weights = {
        _PREFIX + name: value.detach().to("cpu").contiguous()
        for name, value in peft_package()
        .get_peft_model_state_dict(transformer, adapter_name=NAME)
        .items()
    }
    settings = {
        _PREFIX + key: sorted(value) if isinstance(value, set) else value
        for key, value in transformer.peft_config[NAME].to_dict().items()
    }
    header = {"format": "pt", METADATA: json.dumps(settings, sort_keys=True, default=str)}
    with replacing(path) as part:
        save_file(weights, part, metadata=header)


def peft_package() -> Any:
    """The package peft with the one name of its that is used from a submodule.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise RequestError(
            "adapters need the package peft; install it with: pip install 'acestep[train]'"
        ) from None
    return peft
