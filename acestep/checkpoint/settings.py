"""What a module's config says, in the terms of diffusers' classes, or refused by name.

diffusers' classes take some settings of the original without effect, others only to fail at
the first step. Here each is given its meaning, or the field that has none is named.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from acestep.errors import CheckpointError

log = logging.getLogger("acestep.checkpoint")

SLIDING, FULL = "sliding_attention", "full_attention"
DEFAULT_WINDOW = 128

_COUNTS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "in_channels",
    "audio_acoustic_hidden_dim",
    "patch_size",
    "encoder_hidden_size",
    "encoder_intermediate_size",
    "encoder_num_attention_heads",
    "encoder_num_key_value_heads",
    "text_hidden_dim",
    "timbre_hidden_dim",
    "num_lyric_encoder_hidden_layers",
    "num_timbre_encoder_hidden_layers",
    "num_attention_pooler_hidden_layers",
    "pool_window_size",
    "fsq_dim",
    "fsq_input_num_quantizers",
)
_NUMBERS = ("rope_theta", "rms_norm_eps")
_SWITCHES = ("attention_bias", "use_sliding_window")
_UNNEEDED = ("use_sliding_window", "rope_parameters", "rope_scaling", "hidden_act")


def understood(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A config whose fields mean what diffusers' classes take them for.

    `layer_types` is there where layers differ from the classes' alternation, and names every
    layer `full_attention` where windows are off; `sliding_window` is then any number.

    Args:
        config: as stored; fields that say null are left to the classes' defaults.
        file: named in messages.

    Raises:
        CheckpointError: a field has a wrong type, or a value that nothing here computes.
    """
    windows_off = "sliding_window" in config and config["sliding_window"] is None
    made = {key: value for key, value in config.items() if value is not None}
    _check_types(made, file)
    _check_only(made, file, "hidden_act", "silu")
    _check_only(made, file, "fsq_input_num_quantizers", 1)
    made |= _rotary(made, file)
    _check_heads(made, file)
    if windows_off or made.get("use_sliding_window") is False:
        made["layer_types"] = [FULL] * made.get("num_hidden_layers", 1)
        made["sliding_window"] = DEFAULT_WINDOW
    elif "layer_types" in made:
        _check_layers(made, file)
    return {key: value for key, value in made.items() if key not in _UNNEEDED}


def is_turbo(config: dict[str, Any], name: str, file: Path) -> bool:
    """Whether a checkpoint is guidance-distilled: what `is_turbo` says, else what there is.

    A guess is said in a warning.

    Args:
        config: the transformer's.
        name: what the checkpoint is called.
        file: the config's, named in messages.

    Raises:
        CheckpointError: `is_turbo` is neither true nor false.
    """
    flag = config.get("is_turbo")
    if isinstance(flag, bool):
        return flag
    if flag is not None:
        raise CheckpointError(f"{file}: is_turbo is {flag!r}, expected true or false")
    classes = config.get("auto_map")
    said = {
        "model_version": config.get("model_version"),
        "auto_map": " ".join(map(str, classes.values())) if isinstance(classes, dict) else None,
        "the checkpoint's name": name,
    }
    for source, text in said.items():
        words = str(text or "").lower()
        for kind in ("turbo", "base", "sft"):
            if kind in words:
                if source != "model_version":
                    log.warning("%s: has no is_turbo; taken as %s from %s", file, kind, source)
                return kind == "turbo"
    log.warning("%s: has no is_turbo and nothing else that says; taken as not distilled", file)
    return False


def with_kind(config: dict[str, Any], name: str, file: Path) -> dict[str, Any]:
    """A transformer's config in which `is_turbo` stands and nothing speaks against it.

    diffusers' pipeline takes either `is_turbo` or `model_version` for it; see `is_turbo`.
    """
    turbo = is_turbo(config, name, file)
    version = config.get("model_version")
    # diffusers would take this one for turbo all the same.
    kept = None if version == "turbo" and not turbo else version
    return {**config, "is_turbo": turbo, "model_version": kept}


def layer_types(config: dict[str, Any], layers: int, file: Path) -> list[str]:
    """The kinds of a stack's layers; every stack of a model reads the same list from its start.

    Args:
        config: as `understood` returned it.
        layers: how many the stack has.
        file: named in messages.

    Raises:
        CheckpointError: the list is shorter than the stack and does not alternate.
    """
    listed = list(config.get("layer_types") or [])
    alternating = [SLIDING if number % 2 == 0 else FULL for number in range(layers)]
    if listed[:layers] == alternating[: len(listed)]:
        return alternating
    if set(listed) == {FULL}:
        return [FULL] * layers
    if len(listed) < layers:
        raise CheckpointError(
            f"{file}: layer_types names {len(listed)} layers, and a part of the model has {layers}"
        )
    return listed[:layers]


def _check_types(config: dict[str, Any], file: Path) -> None:
    for key, value in config.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _COUNTS and not (number and isinstance(value, int) and value > 0):
            raise CheckpointError(f"{file}: {key} is {value!r}, expected a whole number above 0")
        if key in _NUMBERS and not (number and value > 0):
            raise CheckpointError(f"{file}: {key} is {value!r}, expected a number above 0")
        if key in _SWITCHES and not isinstance(value, bool):
            raise CheckpointError(f"{file}: {key} is {value!r}, expected true or false")
        if key == "sliding_window" and not (number and isinstance(value, int) and value >= 0):
            raise CheckpointError(f"{file}: {key} is {value!r}, expected a whole number or null")


def _check_only(config: dict[str, Any], file: Path, key: str, known: Any) -> None:
    if config.get(key, known) != known:
        raise CheckpointError(
            f"{file}: {key} is {config[key]!r}, and only {known!r} is implemented here"
        )


def _rotary(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """`rope_theta`, which newer versions of transformers store one level deeper."""
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        settings = config.get(key)
        if settings is None:
            continue
        kind = None
        if isinstance(settings, dict):
            kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default":
            raise CheckpointError(
                f"{file}: {key} is {settings!r}, and only plain rotary positions are implemented"
            )
        if "rope_theta" in settings and "rope_theta" not in config:
            found["rope_theta"] = settings["rope_theta"]
    _check_types(found, file)
    return found


def _check_heads(config: dict[str, Any], file: Path) -> None:
    for prefix in ("", "encoder_"):
        heads, shared = (
            config.get(prefix + key) for key in ("num_attention_heads", "num_key_value_heads")
        )
        if heads and shared and heads % shared:
            raise CheckpointError(
                f"{file}: {prefix}num_attention_heads {heads} is no multiple of "
                f"{prefix}num_key_value_heads {shared}"
            )


def _check_layers(config: dict[str, Any], file: Path) -> None:
    listed = config["layer_types"]
    if not isinstance(listed, list) or not listed or set(map(str, listed)) - {SLIDING, FULL}:
        raise CheckpointError(
            f"{file}: layer_types is {listed!r}, expected a list of '{SLIDING}' and '{FULL}'"
        )
    if len(listed) < config.get("num_hidden_layers", 0):
        raise CheckpointError(
            f"{file}: layer_types names {len(listed)} layers, num_hidden_layers is "
            f"{config['num_hidden_layers']}"
        )
