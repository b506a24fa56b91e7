"""Configs that follow from the shapes of tensors, for files that come without any.

What shapes do not say is as published: rotary base, epsilon, window, alternating layers. Other
values, and whether the checkpoint is distilled, may stand in a JSON file of the same name
beside it, in the original layout's terms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from acestep.checkpoint.files import read_json
from acestep.checkpoint.settings import is_turbo
from acestep.checkpoint.single.parts import Part, oobleck_name
from acestep.errors import CheckpointError

SAMPLE_RATE = 48000
_FSQ_CHANNELS = 6
_KINDS = ("turbo", "base", "sft")


def dit_config(part: Part) -> dict[str, Any]:
    """The original layout's config of a DiT with its condition encoder and tokenizers.

    Raises:
        CheckpointError: a tensor is missing that a width is read from, or nothing says whether
            it is distilled.
    """
    of = _Shapes(part)
    hidden = of("decoder.norm_out.weight", 1)[0]
    encoder = of("encoder.lyric_encoder.norm.weight", 1)[0]
    patched = of("decoder.proj_in.1.weight", 3)
    config: dict[str, Any] = {
        "hidden_size": hidden,
        **_attention(of, "decoder.layers.0."),
        "num_hidden_layers": of.layers("decoder.layers."),
        "in_channels": patched[1],
        "patch_size": patched[2],
        "audio_acoustic_hidden_dim": of("decoder.proj_out.1.weight", 3)[1],
        "text_hidden_dim": of("encoder.text_projector.weight")[1],
        "timbre_hidden_dim": of("encoder.timbre_encoder.embed_tokens.weight")[1],
        "num_lyric_encoder_hidden_layers": of.layers("encoder.lyric_encoder.layers."),
        "num_timbre_encoder_hidden_layers": of.layers("encoder.timbre_encoder.layers."),
        "attention_bias": "decoder.layers.0.self_attn.q_proj.bias" in part.tensors,
    }
    own = {"hidden_size": encoder, **_attention(of, "encoder.lyric_encoder.layers.0.")}
    own.pop("head_dim")
    if any(config[key] != value for key, value in own.items()):
        config |= {f"encoder_{key}": value for key, value in own.items()}
    if "tokenizer.quantizer.project_in.weight" in part.tensors:
        channels, width = of("tokenizer.quantizer.project_in.weight")
        if channels != _FSQ_CHANNELS:
            raise CheckpointError(
                f"{part.file}: its audio tokenizer has {channels} channels, expected "
                f"{_FSQ_CHANNELS}"
            )
        config |= {
            "fsq_dim": width,
            "pool_window_size": of("detokenizer.special_tokens", 3)[1],
            "num_attention_pooler_hidden_layers": of.layers("detokenizer.layers."),
        }
    stated = beside(part.file)
    config |= {key: value for key, value in stated.items() if not key.startswith("_")}
    return config | {"is_turbo": _turbo(config, part.file)}


def text_config(part: Part) -> dict[str, Any]:
    """The config of a Qwen3 model."""
    of = _Shapes(part)
    rows, hidden = of("embed_tokens.weight")
    return {
        "vocab_size": rows,
        "hidden_size": hidden,
        **_attention(of, "layers.0."),
        "num_hidden_layers": of.layers("layers."),
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "rms_norm_eps": 1e-6,
        **beside(part.file, "text_config"),
    }


def vae_config(part: Part) -> dict[str, Any]:
    """The config of diffusers' `AutoencoderOobleck`."""
    blocks = vae_blocks(part)
    shapes = {oobleck_name(name, blocks): shape for name, shape in part.shapes.items()}

    def of(name: str) -> tuple[int, ...]:
        if len(shape := shapes.get(name, ())) != 3:
            raise CheckpointError(
                f"{part.file}: its VAE has no tensor '{name}' to read widths from"
            )
        return shape

    channels = of("decoder.conv2.weight_v")[1]
    ups = [of(f"decoder.block.{number}.conv_t1.weight_v") for number in range(blocks)]
    ratios = [shape[2] // 2 for shape in reversed(ups)]
    multiples = [shape[0] // channels for shape in reversed(ups)]
    if 0 in ratios or 0 in multiples:
        raise CheckpointError(f"{part.file}: the widths of its VAE's blocks do not fit together")
    return {
        "encoder_hidden_size": of("encoder.conv1.weight_v")[0],
        "downsampling_ratios": ratios,
        "channel_multiples": multiples,
        "decoder_channels": channels,
        "decoder_input_channels": of("decoder.conv1.weight_v")[1],
        "audio_channels": of("decoder.conv2.weight_v")[0],
        "sampling_rate": SAMPLE_RATE,
    }


def vae_blocks(part: Part) -> int:
    """How many blocks of the VAE change the rate."""
    by_diffusers = _count(part.tensors, r"^decoder\.block\.(\d+)\.")
    # stable-audio-tools counts the first convolution and the last two layers too.
    return by_diffusers or _count(part.tensors, r"^decoder\.layers\.(\d+)\.") - 3


def beside(file: Path, section: str | None = None) -> dict[str, Any]:
    """Settings from the JSON file of the same name, or a section of it."""
    path = file.with_suffix(".json")
    settings = read_json(path) if path.is_file() else {}
    found = settings.get(section, {}) if section else settings
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: {section} is {found!r}, expected an object")
    return found


def _turbo(config: dict[str, Any], file: Path) -> bool:
    """Whether it is distilled; the tensors of distilled and other checkpoints are alike.

    Raises:
        CheckpointError: nothing says.
    """
    if config.get("is_turbo") is None and config.get("model_version") is None:
        named = [kind for kind in _KINDS if kind in file.stem.lower()]
        if len(named) != 1:
            raise CheckpointError(
                f"{file}: its tensors do not say whether it is distilled, and its name has "
                f"{' and '.join(named) or 'neither turbo nor base nor sft'}; put a file "
                f'{file.with_suffix(".json").name} beside it with {{"is_turbo": true}} or false'
            )
    return is_turbo(config, file.stem, file)


def _attention(of: _Shapes, layer: str) -> dict[str, int]:
    head_dim = of(layer + "self_attn.q_norm.weight", 1)[0]
    return {
        "intermediate_size": of(layer + "mlp.gate_proj.weight")[0],
        "head_dim": head_dim,
        "num_attention_heads": of(layer + "self_attn.q_proj.weight")[0] // head_dim,
        "num_key_value_heads": of(layer + "self_attn.k_proj.weight")[0] // head_dim,
    }


class _Shapes:
    """Shapes of a part's tensors, for widths to be read from."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self, name: str, dims: int = 2) -> tuple[int, ...]:
        entry = self.part.tensors.get(name)
        if entry is None or len(entry.shape) != dims or math.prod(entry.shape) == 0:
            raise CheckpointError(
                f"{self.part.file}: its {self.part.kind} has no tensor '{name}' to read widths from"
            )
        return entry.shape

    def layers(self, prefix: str) -> int:
        """How many numbered layers there are."""
        return _count(self.part.tensors, rf"^{re.escape(prefix)}(\d+)\.")


def _count(names: Iterable[str], pattern: str) -> int:
    numbers = (int(match[1]) for name in names if (match := re.match(pattern, name)))
    return max(numbers, default=-1) + 1
