"""MLX modules in the shape of a checkpoint's, with its tensors, read when they are needed.

diffusers' modules say what there is, and stay empty: `Shelf` takes the tensors that the checkpoint's
reader finds for them, and the functions here make MLX's of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import torch
from mlx import nn

from acestep.checkpoint.files import stored
from acestep.checkpoint.modules import Place, check_shape
from acestep.checkpoint.original import original_name
from acestep.engines.mlx.arrays import dtype_of, from_torch
from acestep.engines.mlx.attention import Shape
from acestep.engines.mlx.encoders import ConditionEncoder, TextEncoder
from acestep.engines.mlx.layers import StackShape
from acestep.engines.mlx.quantised import GROUP
from acestep.engines.mlx.tokens import AudioTokenizer, Detokenizer
from acestep.engines.mlx.transformer import Transformer, TransformerShape
from acestep.engines.mlx.wave import Vae, VaeShape, Ways
from acestep.errors import CheckpointError

Weights = dict[str, mx.array]
Made = TypeVar("Made", bound=nn.Module)

_READ_BY_MLX = ("F32", "F16", "BF16", "U32")


class Shelf:
    """Tensors of modules that stay empty, by module and name; see `checkpoint.modules.Put`."""

    def __init__(self) -> None:
        self._held: dict[int, Weights] = {}

    def __call__(
        self, file: Path, tensors: Any, places: Mapping[str, Place], dtype: torch.dtype
    ) -> None:
        """Take tensors of a file, which MLX reads from it later."""
        found = stored(file)
        simple = {entry.dtype for entry in found.values()} <= set(_READ_BY_MLX)
        arrays: Any = mx.load(str(file)) if simple else {}
        for key, place in places.items():
            if key in arrays and place.convert is None:
                value = arrays[key]
            else:
                # Eight bits and what has a scale: PyTorch knows the forms, a tensor at a time.
                read = tensors.get_tensor(key)
                read = read if place.convert is None else place.convert(read)
                check_shape(file, key, place, read.shape)
                value = from_torch(read.to(dtype))
            # What few bits are packed into are whole numbers, and stay.
            if mx.issubdtype(value.dtype, mx.floating):
                value = value.astype(dtype_of(dtype))
            self._held.setdefault(id(place.module), {})[place.name] = value

    def take(self, module: torch.nn.Module) -> Weights:
        """The tensors of a module, once: an array that is kept here too would stay in memory in
        full beside what is made of it."""
        return self._held.pop(id(module))


def filled(module: Made, weights: Weights) -> Made:
    """A module with weights, all of which it has a place for, and the other way round."""
    small = [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]
    if small:
        # Their shapes have been held against what the folder says.
        held, scales = (weights[f"{small[0]}.{part}"].shape[1] for part in ("weight", "scales"))
        bits = 32 * held // (GROUP * scales)
        nn.quantize(module, GROUP, bits, class_predicate=lambda path, _: path in small)
    module.load_weights(list(weights.items()))
    module.eval()
    return module


def shape_of(attention: Any) -> Shape:
    """Of an attention of diffusers."""
    return Shape(
        attention.heads,
        attention.kv_heads,
        attention.head_dim,
        attention.norm_q.eps,
        attention.to_q.bias is not None,
    )


def stack_of(stack: Any) -> StackShape:
    """Of a stack of encoder layers of diffusers."""
    layer = stack.layers[0]
    return StackShape(
        layer.self_attn.to_q.in_features,
        layer.mlp.gate_proj.out_features,
        shape_of(layer.self_attn),
        [layer.self_attn.sliding_window for layer in stack.layers],
        stack.rope_theta,
    )


def transformer(empty: Any, weights: Weights) -> Transformer:
    """The diffusion transformer, of diffusers' `AceStepTransformer1DModel` and its tensors."""
    config, layer = empty.config, empty.layers[0]
    shape = TransformerShape(
        config.hidden_size,
        config.intermediate_size,
        shape_of(layer.self_attn),
        [layer.self_attn.sliding_window for layer in empty.layers],
        empty.rope_theta,
        empty.condition_embedder.in_features,
        config.audio_acoustic_hidden_dim,
        config.in_channels - config.audio_acoustic_hidden_dim,
        config.patch_size,
    )
    made = dict(weights)
    # [width, channels, patch] and [width, channels, patch], to products over patches.
    given, bias = made.pop("proj_in_conv.weight"), made.pop("proj_in_conv.bias")
    made |= {"proj_in.weight": given.transpose(0, 2, 1).flatten(1), "proj_in.bias": bias}
    taken, bias = made.pop("proj_out_conv.weight"), made.pop("proj_out_conv.bias")
    made["proj_out.weight"] = taken.transpose(2, 1, 0).flatten(0, 1)
    made["proj_out.bias"] = mx.tile(bias, config.patch_size)
    return filled(Transformer(shape), made)


def condition_encoder(empty: Any, weights: Weights, hears_token: bool) -> ConditionEncoder:
    """Of diffusers' `AceStepConditionEncoder`.

    Args:
        empty: the module.
        weights: its tensors.
        hears_token: see `encoders.TimbreEncoder`.
    """
    config = empty.config
    model = ConditionEncoder(
        stack_of(empty.lyric_encoder),
        stack_of(empty.timbre_encoder),
        config.text_hidden_dim,
        config.timbre_hidden_dim,
        hears_token,
    )
    return filled(model, weights)


def text_encoder(empty: Any, weights: Weights) -> TextEncoder:
    """Of `transformers.Qwen3Model`.

    Raises:
        CheckpointError: it is another model, or one with settings that are not known here.
    """
    config = empty.config
    rotary = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    odd = [
        f"model_type {config.model_type}" if config.model_type != "qwen3" else "",
        f"rope_type {rotary['rope_type']}"
        if rotary.get("rope_type", "default") != "default"
        else "",
        "use_sliding_window" if config.use_sliding_window else "",
        f"hidden_act {config.hidden_act}" if config.hidden_act != "silu" else "",
    ]
    if any(odd):
        raise CheckpointError(
            f"the text encoder has {' and '.join(filter(None, odd))}; MLX's engine reads plain "
            "Qwen3 models, use another engine"
        )
    attention = Shape(
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.rms_norm_eps,
        config.attention_bias,
    )
    shape = StackShape(
        config.hidden_size,
        config.intermediate_size,
        attention,
        [None] * config.num_hidden_layers,
        float(rotary["rope_theta"]),
        causal=True,
    )
    named = {_as_encoder(name): value for name, value in weights.items()}
    return filled(TextEncoder(shape, config.vocab_size), named)


def _as_encoder(name: str) -> str:
    # Qwen3 and the original's encoders call a layer's parts alike.
    renamed = original_name(f"encoder.{name}")
    return name if renamed is None else renamed[1]


def audio_tokenizer(empty: Any, weights: Weights) -> AudioTokenizer:
    """Of diffusers' `AceStepAudioTokenizer`."""
    pooler = empty.attention_pooler
    model = AudioTokenizer(
        stack_of(pooler),
        empty.audio_acoustic_proj.in_features,
        empty.quantizer.project_in.in_features,
        empty.quantizer.levels,
    )
    return filled(model, weights)


def detokenizer(empty: Any, weights: Weights) -> Detokenizer:
    """Of diffusers' `AceStepAudioTokenDetokenizer`."""
    channels = empty.proj_out.out_features
    return filled(Detokenizer(stack_of(empty), channels, empty.pool_window_size), weights)


def vae(empty: Any, weights: Weights, ways: Ways) -> Vae:
    """Of diffusers' `AutoencoderOobleck`.

    Args:
        empty: the module.
        weights: its tensors.
        ways: how its device is best given the work.
    """
    config = empty.config
    fields = VaeShape.__dataclass_fields__
    shape = VaeShape(**{name: config[name] for name in fields})
    kept = ((name, value) for name, value in weights.items() if not name.endswith(".weight_g"))
    return filled(Vae(shape, ways), dict(_of_wave(*item, weights) for item in kept))


def _of_wave(name: str, value: mx.array, weights: Weights) -> tuple[str, mx.array]:
    """A tensor of the VAE under the name, and in the form, that `wave` has for it."""
    owner, _, leaf = name.rpartition(".")
    dtype = value.dtype
    wide = value.astype(mx.float32)
    if leaf == "alpha":
        return f"{owner}.rate", mx.exp(wide).flatten().astype(dtype)
    if leaf == "beta":
        return f"{owner}.size", (1 / (mx.exp(wide) + 1e-9)).flatten().astype(dtype)
    if leaf == "weight_v":
        gain = weights[f"{owner}.weight_g"].astype(mx.float32)
        length = mx.sqrt((wide * wide).sum(axis=(1, 2), keepdims=True))
        wide = wide * (gain / length)
    elif leaf != "weight":
        return name, value
    if owner.endswith(".conv_t1"):
        # [inputs, outputs, kernel]; the halves of the kernel one after the other.
        return f"{owner}.weight", wide.transpose(2, 1, 0).flatten(0, 1).astype(dtype)
    return f"{owner}.weight", wide.transpose(0, 2, 1).astype(dtype)
