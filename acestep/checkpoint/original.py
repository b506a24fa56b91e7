"""The original layout: what its tensors and settings are called in diffusers' modules."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from torch import nn

from acestep.checkpoint.modules import component_classes, empty
from acestep.checkpoint.settings import understood

_ATTENTION_NAMES = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
ENCODER_WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)


def original_name(key: str) -> tuple[str, str] | None:
    """Where a tensor of the original layout belongs: (component, name there), or None."""
    prefix, _, rest = key.partition(".")
    if key == "null_condition_emb":
        return "condition_encoder", key
    component = {
        "decoder": "transformer",
        "encoder": "condition_encoder",
        "tokenizer": "audio_tokenizer",
        "detokenizer": "audio_token_detokenizer",
    }.get(prefix)
    if component is None or not rest:
        return None
    if component == "transformer":
        rest = re.sub(r"^proj_in\.1\.", "proj_in_conv.", rest)
        rest = re.sub(r"^proj_out\.1\.", "proj_out_conv.", rest)
    parts = [_ATTENTION_NAMES.get(part, part) for part in rest.split(".")]
    return component, ".".join(parts)


def original_modules(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], file: Path
) -> dict[str, nn.Module]:
    """Empty modules of the widths that an original checkpoint's config and tensors say.

    Fields that no class knows are left out; the tensors must fit whatever they say.

    Args:
        config: in the original's terms.
        shapes: of the tensors, by the original's names.
        file: where the config is from, for messages.
    """
    classes = component_classes()
    config = understood(config, file)
    own = {
        name: config[f"encoder_{name}"]
        for name in ENCODER_WIDTHS
        if config.get(f"encoder_{name}") is not None
    }
    narrow = {**config, **own}
    settings = {"transformer": config, "condition_encoder": narrow}
    # The audio tokenizer and its inverse follow the width of one or the other.
    for name, key in (
        ("audio_tokenizer", "tokenizer.audio_acoustic_proj.weight"),
        ("audio_token_detokenizer", "detokenizer.embed_tokens.weight"),
    ):
        if key in shapes:
            is_wide = shapes[key][0] == config.get("hidden_size")
            settings[name] = config if is_wide else narrow
    modules = {}
    for name, values in settings.items():
        accepted = inspect.signature(classes[name].__init__).parameters
        arguments = {key: value for key, value in values.items() if key in accepted}
        modules[name] = empty(classes[name], arguments, file)
    return modules
