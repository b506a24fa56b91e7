"""What a single safetensors file holds, recognised by the names of its tensors.

Names, from ComfyUI's published files ("ace_step_1.5_ComfyUI_files") and its guide to
quantization: an all-in-one file has the DiT below `model.diffusion_model.`, with the original
layout's names; text encoders below `text_encoders.qwen3_*.transformer.`, of which the 0.6B one
encodes prompts unless it knows audio codes; and the VAE below `vae.`. Files of one part have the
same names without these prefixes. The VAE has stable-audio-tools' names (`decoder.layers.1…`) or
diffusers'. float8 weights may have a scale beside them, `weight_scale` or `scale_weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from acestep.checkpoint.files import Stored, stored

DIT, TEXT_ENCODER, VAE, LANGUAGE = "DiT", "text encoder", "VAE", "language model"

_DIT_KEY = "encoder.lyric_encoder.layers.0.input_layernorm.weight"
_DIT_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_VAE_KEYS = ("decoder.layers.1.layers.0.beta", "decoder.block.0.snake1.beta")
_VAE_PREFIXES = ("vae.", "first_stage_model.", "pretransform.model.", "")
_QWEN_EMBEDDING = "embed_tokens.weight"
_QWEN_KEY = "layers.0.post_attention_layernorm.weight"
_QWEN_PREFIX = re.compile(r"^(text_encoders\.qwen3_[^.]+\.)?(transformer\.)?(model\.)?")
QWEN_VOCABULARY = 151936
"""Rows of a plain Qwen3 model at most; a language model has 64000 codes besides."""

_SCALES = (".weight_scale", ".scale_weight")
# Of activations, or a mark of the format: for engines that multiply in float8.
_UNNEEDED = (".input_scale", ".scale_input", ".comfy_quant", "scaled_fp8")
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Part:
    """One module's tensors in a file.

    Attributes:
        kind: `DIT`, `TEXT_ENCODER`, `VAE` or `LANGUAGE`.
        file: where they are.
        prefix: what the file puts before the module's own names.
        tensors: shape and dtype by the module's own names.
        scales: by the name of the tensor that is to be multiplied, the scale's key in the file.
    """

    kind: str
    file: Path
    prefix: str
    tensors: Mapping[str, Stored]
    scales: Mapping[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the module's own names."""
        return {name: entry.shape for name, entry in self.tensors.items()}


def parts_of(file: Path) -> dict[str, Part]:
    """The parts in a file, by kind; empty where it holds none that is known.

    Raises:
        CheckpointError: its header is damaged.
    """
    entries = stored(file)
    found: dict[str, Part] = {}
    for kind, keys, prefixes in (
        (DIT, (_DIT_KEY,), _DIT_PREFIXES),
        (VAE, _VAE_KEYS, _VAE_PREFIXES),
    ):
        for prefix in prefixes:
            if any(prefix + key in entries for key in keys):
                found[kind] = _part(kind, file, prefix, entries)
                break
    for key, entry in entries.items():
        prefix = key.removesuffix(_QWEN_EMBEDDING)
        if prefix + _QWEN_KEY in entries and _QWEN_PREFIX.fullmatch(prefix):
            # An encoder has no head and no audio codes.
            has_head = prefix.removesuffix("model.") + "lm_head.weight" in entries
            kind = LANGUAGE if has_head or entry.shape[0] > QWEN_VOCABULARY else TEXT_ENCODER
            found[kind] = _part(kind, file, prefix, entries)
    return found


def _part(kind: str, file: Path, prefix: str, entries: Mapping[str, Stored]) -> Part:
    own = {key.removeprefix(prefix): e for key, e in entries.items() if key.startswith(prefix)}
    others = ("model.diffusion_model.", "text_encoders.", "vae.") if not prefix else ()
    tensors: dict[str, Stored] = {}
    scales: dict[str, str] = {}
    for name, entry in own.items():
        if name.startswith(others) or name.endswith(_UNNEEDED):
            continue
        ending = next((ending for ending in _SCALES if name.endswith(ending)), None)
        if ending is not None:
            scales[name.removesuffix(ending) + ".weight"] = prefix + name
        else:
            tensors[name] = entry
    return Part(kind, file, prefix, tensors, scales)


def oobleck_name(name: str, blocks: int) -> str:
    """diffusers' name of a tensor of the VAE that has stable-audio-tools' name.

    Args:
        name: for example `decoder.layers.1.layers.2.layers.1.weight_v`.
        blocks: how many up- or downsampling blocks there are.
    """
    match = re.match(r"^(encoder|decoder)\.layers\.(\d+)\.(.+)$", name)
    if match is None:
        return _old_norm(name)
    side, number, rest = match[1], int(match[2]), match[3]
    if number == 0:
        return _old_norm(f"{side}.conv1.{rest}")
    if number > blocks:
        return _old_norm(f"{side}.{'snake1' if number == blocks + 1 else 'conv2'}.{rest}")
    inner = re.match(r"^layers\.(\d+)\.(.+)$", rest)
    if inner is None:
        return name
    place, rest = int(inner[1]), inner[2]
    # The encoder has its three units before the convolution, the decoder after it.
    units = place + 1 if side == "encoder" else place - 1
    if 1 <= units <= 3:
        unit = re.match(r"^layers\.(\d)\.(.+)$", rest)
        if unit is None:
            return name
        leaf = ("snake1", "conv1", "snake2", "conv2")[int(unit[1]) % 4]
        rest = f"res_unit{units}.{leaf}.{unit[2]}"
    elif side == "encoder":
        rest = f"{'snake1' if place == 3 else 'conv1'}.{rest}"
    else:
        rest = f"{'snake1' if place == 0 else 'conv_t1'}.{rest}"
    return _old_norm(f"{side}.block.{number - 1}.{rest}")


def _old_norm(name: str) -> str:
    """Weight normalisation under its older names."""
    name = name.replace(".parametrizations.weight.original0", ".weight_g")
    return name.replace(".parametrizations.weight.original1", ".weight_v")
