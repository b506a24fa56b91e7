"""A language model's weights in PyTorch: read as published, held in few bits, saved so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep.checkpoint.files import WEIGHT_INDEX, most_stored, read_json, weight_files
from acestep.checkpoint.held import ENTRY, Held, held_in
from acestep.checkpoint.modules import Place, fill
from acestep.checkpoint.pretrained import empty_pretrained, load_pretrained
from acestep.checkpoint.small import Packed, is_made, packed_or_not, small_layers
from acestep.demo import make_folder
from acestep.device import DevicePolicy, resolve
from acestep.engines.loading import packing
from acestep.engines.torch.addresses import align
from acestep.engines.torch.quantised import quantise
from acestep.errors import CheckpointError, RequestError, first_line
from acestep.lm.models import stored_bits

_WHAT = "the language model"
_WEIGHTS = "model.safetensors"


def load_model(folder: Path, policy: DevicePolicy, device: torch.device) -> Any:
    """The model of a folder as transformers' class, in the policy's precision and bits.

    Args:
        folder: in transformers' form, or in few bits as `saved_small` writes it.
        policy: the precision.
        device: where it goes.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit its config.
    """
    from transformers import AutoModelForCausalLM

    kind, placed = policy.quantization, dataclasses.replace(policy, device=device)
    if held_in(folder / "config.json") is not None:
        return align(_read_small(folder, placed))
    home = torch.device("cpu") if kind else device
    model: Any = align(
        load_pretrained(AutoModelForCausalLM, folder, _WHAT, policy.dtype_of("lm"), home)
    )
    return model if kind is None else quantise(model, kind, placed).to(device)


def saved_small(source: Path, target: Path, kind: str) -> Path:
    """A folder with a language model in few bits, made where it is not there yet.

    Args:
        source: the folder of the model.
        target: the folder to make, whole or not at all.
        kind: one of `device.QUANTIZATIONS`.

    Returns:
        the target.

    Raises:
        CheckpointError: the source is damaged.
        RequestError: the source is in few bits already, or something else is where the folder goes.
    """
    before = held_in(source / "config.json")
    if before is not None or stored_bits(source) is not None:
        raise RequestError(f"{source.name} is in few bits already; name the model it was made of")
    held = Held("torch", kind, most_stored(source))
    if is_made(target, "config.json", held):
        return target
    tensors = _packed(source, resolve("cpu", quantization=kind))

    def write(folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir()
        for file in source.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != WEIGHT_INDEX:
                shutil.copy2(file, folder / file.name)
        config = read_json(source / "config.json") | {ENTRY: held.entry}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        save_file(tensors, folder / _WEIGHTS, {"format": "pt"})

    make_folder(target, write)
    return target


def _packed(source: Path, policy: DevicePolicy) -> Packed:
    """A model's tensors as they are stored, those of small layers packed as they come."""
    from safetensors import SafetensorError, safe_open

    model, pack = _empty(source), packing(policy)
    small = {f"{path}.weight" for path, _ in small_layers(model)}
    made: Packed = {}
    for file in weight_files(source):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    made |= packed_or_not(key, tensors.get_tensor(key), small, pack)
        except (SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{file}: damaged ({first_line(error)})") from None
    return made


def _read_small(folder: Path, policy: DevicePolicy) -> nn.Module:
    model = _empty(folder)
    quantise(model, str(policy.quantization), policy)
    # Scores that share the embedding have no tensor of their own.
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    wanted = {(id(model), name) for name in model.state_dict() if name not in tied}
    fill(
        weight_files(folder), lambda key: Place(model, key), wanted, policy, folder, "lm",
        skip=lambda key: key in tied,
    )  # fmt: skip
    model.tie_weights()
    # Tables of positions are no part of a file.
    placed: nn.Module = model.to(policy.device)
    return placed


def _empty(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return empty_pretrained(AutoModelForCausalLM, folder, _WHAT)
