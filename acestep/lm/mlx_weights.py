"""A language model's weights in MLX: read as published, held in few bits, saved so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from acestep.checkpoint.files import read_json, weight_files
from acestep.device import DevicePolicy
from acestep.errors import CheckpointError, RequestError, first_line

GROUPS = (64, 32)
"""Weights that share a scale and an offset: the first that divides a layer's inputs."""

_KEY = "quantization"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def load_model(folder: Path, policy: DevicePolicy) -> qwen3.Model:
    """The Qwen3 model of a folder, in the policy's precision and bits.

    Args:
        folder: in transformers' form, or with `quantization` in its config in mlx-lm's.
        policy: where MLX computes is up to the caller.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit its config.
        RequestError: it is stored in other bits than asked for.
    """
    config = read_json(folder / "config.json")
    bits = _bits(policy.quantization)
    stored = config.get(_KEY) or {}
    if stored and bits and bits != stored.get("bits"):
        raise RequestError(
            f"{folder.name} is stored in {stored.get('bits')} bits; leave out --quantize, or use "
            "the model that it was made of"
        )
    try:
        model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
        weights = model.sanitize(dict(_read(folder)))
        if stored:
            _prepare(model, weights, int(stored["bits"]))
        dtype = getattr(mx, policy.dtypes["lm"].name)
        weights = {name: _cast(value, dtype) for name, value in weights.items()}
        model.load_weights(list(weights.items()))
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: the language model cannot be loaded ({first_line(error)})"
        ) from None
    if bits and not stored:
        quantise(model, bits)
    model.eval()
    # A thread cannot compute what another one left undone.
    mx.eval(model.parameters())
    return model


def quantise(model: nn.Module, bits: int) -> None:
    """Hold every matrix of a model in few bits, in MLX's own groups, layer by layer.

    Args:
        model: changed in place.
        bits: of a weight, 8 or 4.
    """
    for name, layer in list(_layers(model)):
        group = next((group for group in GROUPS if layer.weight.shape[-1] % group == 0), None)
        if group is not None:
            nn.quantize(model, group, bits, class_predicate=_only(name))
            # One at a time: the whole model twice would not fit where it is wanted.
            mx.eval(model.parameters())
    mx.clear_cache()


def save(model: qwen3.Model, source: Path, target: Path, bits: int) -> None:
    """Write a quantised model as a folder that loads without the one it was made of.

    It is mlx-lm's own form, which its commands read too.

    Args:
        model: as `quantise` left it.
        source: the folder it was loaded from; its tokenizer is copied.
        target: made here, whole or not at all.
        bits: of its weights.
    """
    from acestep.demo import make_folder

    def write(folder: Path) -> None:
        for file in source.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != _INDEX:
                shutil.copy2(file, folder / file.name)
        config = read_json(source / "config.json")
        config[_KEY] = {"group_size": GROUPS[0], "bits": bits, "mode": "affine"}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        weights = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(folder / _WEIGHTS), weights, {"format": "mlx"})

    make_folder(target, write)


def _read(folder: Path) -> Iterator[tuple[str, Any]]:
    for file in weight_files(folder):
        yield from mx.load(str(file)).items()


def _prepare(model: nn.Module, weights: dict[str, Any], bits: int) -> None:
    """Make the layers of a model ready for weights that are stored in few bits."""
    for name, layer in list(_layers(model)):
        if (scales := weights.get(f"{name}.scales")) is not None:
            group = layer.weight.shape[-1] // scales.shape[-1]
            nn.quantize(model, group, bits, class_predicate=_only(name))


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            yield name, layer


def _only(wanted: str) -> Callable[[str, Any], bool]:
    return lambda name, layer: name == wanted


def _cast(value: Any, dtype: Any) -> Any:
    """Floats in the wanted precision; packed weights are whole numbers, and stay."""
    return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value


def _bits(kind: str | None) -> int | None:
    return {"int8": 8, "int4": 4}[kind] if kind else None
