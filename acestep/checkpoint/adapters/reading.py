"""Adapter files in the forms that trainers write: their tensors, and the settings beside them.

Forms, as documented: PEFT's checkpoint format (a folder with `adapter_config.json` and
`adapter_model.safetensors`); diffusers' single file, whose header holds the settings; kohya's
and LyCORIS' single files, which hold an alpha for each layer and need no settings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from acestep.checkpoint.files import header, read_json
from acestep.errors import CheckpointError, RequestError, first_line

METADATA = "lora_adapter_metadata"
"""diffusers keeps the adapter's settings under this key of the file's header."""

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FOLDER_FILES = (PEFT_WEIGHTS, "pytorch_lora_weights.safetensors", "lokr_weights.safetensors")
_KINDS = ("LORA", "LOKR", "LOHA")
# What changes more of a model than the layers' updates say.
_UNKNOWN = (
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
    "use_qalora",
    "fan_in_fan_out",
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it is stored.

    Attributes:
        path: the file, for messages.
        tensors: by the file's own names.
        settings: PEFT's configuration, or empty where the file stands alone.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> AdapterFile:
    """Read an adapter.

    Args:
        path: a safetensors file, or the folder that holds one.

    Raises:
        RequestError: there is no such file.
        CheckpointError: it is damaged, or of a kind that is not known here.
    """
    file = _weights_in(path) if path.is_dir() else path
    if not file.is_file():
        raise RequestError(f"{path}: no such adapter file; train one with: acestep train")
    beside = file.with_name(PEFT_CONFIG)
    settings = read_json(beside) if file.name == PEFT_WEIGHTS and beside.is_file() else {}
    try:
        header(file)
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            stored = json.loads((opened.metadata() or {}).get(METADATA, "null"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not readable as an adapter ({error})") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as an adapter ({first_line(error)}); it may be truncated"
        ) from None
    if isinstance(stored, dict) and not settings:
        settings = {key.removeprefix("transformer."): value for key, value in stored.items()}
    return AdapterFile(path, tensors, _checked(settings, path))


def _weights_in(folder: Path) -> Path:
    """The weights in an adapter's folder; trainers put them at its root or under `adapter`."""
    for place in (folder, folder / "adapter"):
        for name in _FOLDER_FILES:
            if (place / name).is_file():
                return place / name
    single = sorted(folder.glob("*.safetensors"))
    if len(single) == 1:
        return single[0]
    if (folder / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{folder}: adapter_model.bin is a pickle, which is not opened; store the adapter as "
            "safetensors"
        )
    held = f"{len(single)} safetensors files" if single else "no safetensors file"
    raise RequestError(f"{folder}: no such adapter file; it holds {held}, expected {PEFT_WEIGHTS}")


def _checked(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings, when they ask for nothing but updates of layers."""
    kind = str(settings.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if kind not in _KINDS:
        raise CheckpointError(
            f"{path}: an adapter of kind {kind}; expected LoRA, DoRA, LoKr or LoHa"
        )
    asked = [key for key in _UNKNOWN if settings.get(key)]
    if settings.get("bias", "none") != "none":
        asked.append("bias")
    if str(settings.get("init_lora_weights")).startswith(_CHANGES_BASE):
        asked.append("init_lora_weights")
    if asked:
        raise CheckpointError(
            f"{path}: its settings ask for {asked[0]}={settings[asked[0]]!r}, which is not "
            "supported; expected updates of linear layers only"
        )
    for key in ("r", "lora_alpha", "alpha"):
        value = settings.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{path}: its settings say {key}={value!r}, expected a number")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(key) or {}
        good = isinstance(pattern, dict) and all(
            isinstance(value, int | float) and value > 0 for value in pattern.values()
        )
        if not good:
            raise CheckpointError(f"{path}: its settings say {key}={pattern!r}, expected numbers")
    return settings
