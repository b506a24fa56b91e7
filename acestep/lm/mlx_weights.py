"""A language model's weights in MLX: read as published, held in few bits, saved so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from acestep.checkpoint.files import most_stored, read_json, weight_files
from acestep.demo import make_folder
from acestep.device import DevicePolicy, resolve
from acestep.engines.mlx.place import Place
from acestep.engines.mlx.quantised import GROUP, bits_of, quantise
from acestep.errors import CheckpointError, RequestError, first_line
from acestep.lm.models import STORED_SMALL, stored_bits

EMBEDDING_BITS = 8
"""Of what embeds, which gives the scores too in the smaller models: it is a third of them, and
four bits of it cost more than four bits of the rest."""

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_model(folder: Path, policy: DevicePolicy) -> qwen3.Model:
    """The Qwen3 model of a folder, in the policy's precision and bits.

    Args:
        folder: in transformers' form, or in few bits as `save` and mlx-lm write them.
        policy: which MLX device computes is up to the caller.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit its config.
        RequestError: it is stored in other bits than asked for.
    """
    config = read_json(folder / "config.json")
    bits = bits_of(policy.quantization) if policy.quantization else None
    stored = stored_bits(folder)
    if stored and bits and bits != stored:
        raise RequestError(
            f"{folder.name} is stored in {stored} bits; leave out --quantize, or name the model "
            "that it was made of"
        )
    try:
        model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
        weights = model.sanitize(dict(_read(folder)))
        if stored:
            _make_ready(model, weights, config[STORED_SMALL], folder)
        dtype = getattr(mx, policy.dtypes["lm"].name)
        model.load_weights([(name, _cast(value, dtype)) for name, value in weights.items()])
        del weights
        if bits and not stored:
            make_small(model, bits)
        # A thread cannot compute what another one left undone.
        mx.eval(model.parameters())
    except (ArithmeticError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: the language model cannot be loaded ({first_line(error)})"
        ) from None
    model.eval()
    return model


def make_small(model: qwen3.Model, bits: int) -> None:
    """Hold the matrices of a model in few bits, in MLX's own groups.

    Args:
        model: changed in place, a layer at a time: it would not fit twice where it is wanted.
        bits: of a weight, 8 or 4; see `EMBEDDING_BITS`.
    """
    quantise(model, bits, lambda _, layer: _in_groups(layer, nn.Linear))
    nn.quantize(
        model.model,
        GROUP,
        EMBEDDING_BITS,
        class_predicate=lambda _, layer: _in_groups(layer, nn.Embedding),
    )


def saved_small(source: Path, target: Path, kind: str) -> Path:
    """A folder with a language model in few bits, made where it is not there yet.

    Args:
        source: the folder of the model.
        target: the folder to make.
        kind: `int8` or `int4`.

    Returns:
        the target.

    Raises:
        CheckpointError: the source is damaged.
        RequestError: MLX is not installed, the source is in few bits already, or something else
            is where the folder goes.
    """
    if (known := stored_bits(source)) is not None:
        raise RequestError(
            f"{source.name} is in {known} bits already; name the model that it was made of"
        )
    # What is stored in half precision loses nothing in it, and needs no more room for its scales.
    dtype = "bfloat16" if most_stored(source) in ("BF16", "F16") else "float32"
    policy = resolve("cpu", dtype=dtype, quantization=kind, engine="mlx")
    bits = bits_of(kind)
    if target.exists():
        if (target / "model.safetensors").is_file() and stored_bits(target) == bits:
            return target
        raise RequestError(
            f"{target} is there and holds no language model in {bits} bits; remove it, or name "
            "another folder with --to"
        )
    with Place(policy).working():
        save(load_model(source, policy), source, target, bits)
    return target


def save(model: qwen3.Model, source: Path, target: Path, bits: int) -> None:
    """Write a model in few bits as a folder that loads without the one it was made of.

    It has mlx-lm's form, whose own commands read it too.

    Args:
        model: as `make_small` left it.
        source: the folder it was loaded from; its tokenizer is copied.
        target: made here, whole or not at all.
        bits: of its weights.
    """
    config = read_json(source / "config.json")
    small = {"group_size": GROUP, "bits": bits, "mode": "affine"}
    if isinstance(model.model.embed_tokens, nn.QuantizedEmbedding):
        small["model.embed_tokens"] = {"group_size": GROUP, "bits": EMBEDDING_BITS}
    config[STORED_SMALL] = small

    def write(folder: Path) -> None:
        folder.mkdir()
        for file in source.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != _INDEX:
                shutil.copy2(file, folder / file.name)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        weights: Any = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(folder / _WEIGHTS), weights, {"format": "mlx"})

    make_folder(target, write)


def _read(folder: Path) -> Iterator[tuple[str, Any]]:
    for file in weight_files(folder):
        weights: Any = mx.load(str(file))
        yield from weights.items()


def _make_ready(
    model: qwen3.Model, weights: dict[str, Any], said: dict[str, Any], folder: Path
) -> None:
    """Give a model layers in few bits where weights are stored so; what the config says of each is
    held against their shapes."""

    def form(name: str, layer: nn.Module) -> Any:
        if (scales := weights.get(f"{name}.scales")) is None:
            return False
        own = said.get(name)
        how = said | own if isinstance(own, dict) else said
        bits, group, inputs = how["bits"], how.get("group_size", GROUP), layer["weight"].shape[-1]
        held = weights[f"{name}.weight"]
        fits = scales.ndim == held.ndim == 2 and how.get("mode", "affine") == "affine"
        if not fits or (32 * held.shape[1], scales.shape[1] * group) != (bits * inputs, inputs):
            raise CheckpointError(
                f"{folder}: '{name}' is not in {bits} bits with a scale and an offset for each {group} "
                "weights, as its config says; make the folder again"
            )
        return {"group_size": group, "bits": bits}

    nn.quantize(model, class_predicate=form)


def _in_groups(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return type(layer) is kind and layer["weight"].shape[-1] % GROUP == 0


def _cast(value: Any, dtype: Any) -> Any:
    """Floats in the wanted precision; packed weights are whole numbers, and stay."""
    return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value
