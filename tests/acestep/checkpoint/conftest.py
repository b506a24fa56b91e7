"""Checkpoints of the original layout, written from the published rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.checkpoint.files import WEIGHT_INDEX
from acestep.checkpoint.names import TEXT_ENCODER
from acestep.checkpoint.original import ENCODER_WIDTHS

WriteOriginal = Callable[..., Path]

_BACK = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
_PREFIX = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}


def original_key(component: str, name: str) -> str:
    """The name a tensor has in the original layout, written out from the published rules."""
    if name == "null_condition_emb":
        return name
    name = name.replace("to_out.0", "o_proj")
    if component == "transformer":
        name = name.replace("proj_in_conv.", "proj_in.1.").replace("proj_out_conv.", "proj_out.1.")
    return _PREFIX[component] + ".".join(_BACK.get(part, part) for part in name.split("."))


def _write_original(source: Path, root: Path, shards: int = 1, xl: bool = False) -> Path:
    """Write a diffusers checkpoint in the original layout; returns the DiT's folder."""
    dit = root / "acestep-v15-turbo"
    dit.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    config: dict[str, Any] = {"model_type": "acestep", "dtype": "float32"}
    for component in _PREFIX:
        folder = source / component
        settings = json.loads((folder / "config.json").read_text())
        own = {k: v for k, v in settings.items() if not k.startswith("_")}
        if component == "transformer":
            config |= own
        else:
            config = {**own, **config}
        state = load_file(folder / "diffusion_pytorch_model.safetensors")
        if component == "condition_encoder":
            silence = state.pop("silence_latent")
            torch.save(silence.transpose(1, 2).contiguous(), dit / "silence_latent.pt")
            if xl:
                for name in ENCODER_WIDTHS:
                    config[f"encoder_{name}"] = own[name]
        tensors |= {original_key(component, name): value for name, value in state.items()}
    (dit / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, dit / "model.safetensors")
    else:
        weight_map = {}
        for number in range(shards):
            file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = {name: tensors[name] for name in names[number::shards]}
            save_file(part, dit / file)
            weight_map |= dict.fromkeys(part, file)
        (dit / WEIGHT_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    shutil.copytree(source / "vae", root / "vae")
    shutil.copytree(source / "text_encoder", root / TEXT_ENCODER)
    for file in (source / "tokenizer").iterdir():
        shutil.copy(file, root / TEXT_ENCODER)
    return dit


@pytest.fixture(scope="session")
def write_original() -> WriteOriginal:
    """Writes a diffusers checkpoint in the original layout; returns the transformer's folder."""
    return _write_original
