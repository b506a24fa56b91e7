"""From an adapter's tensors to updates of the transformer's layers, whatever they are called.

Names of parts: PEFT (`lora_A`, `lora_B`, `lora_magnitude_vector`), kohya (`lora_down`,
`lora_up`, `alpha`), LyCORIS (`lokr_w1`, `hada_w1_a`, `dora_scale`, …). Layers go by diffusers'
names or the original's, with dots or underscores, below prefixes of PEFT
(`base_model.model.`), diffusers (`transformer.`), ComfyUI (`diffusion_model.`), kohya
(`lora_unet_`) and LyCORIS (`lycoris_`).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep.checkpoint.adapters.reading import AdapterFile
from acestep.checkpoint.adapters.updates import Hadamard, Kronecker, LowRank, Update
from acestep.errors import CheckpointError

_TAG = r"(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
_PARTS = {
    "down": rf"\.lora_A{_TAG}|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight"
    r"|\.lora_down\.weight",
    "up": rf"\.lora_B{_TAG}|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight"
    r"|\.lora_up\.weight",
    "magnitude": rf"\.lora_magnitude_vector{_TAG}|\.dora_scale",
    "alpha": r"\.alpha",
    **{name: rf"\.{name}(?:\.default)?" for name in (
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    )},
}  # fmt: skip
_PART = re.compile("|".join(f"(?P<{name}>{pattern})$" for name, pattern in _PARTS.items()))
_PREFIX = re.compile(
    r"^(base_model|model|transformer|diffusion_model|unet|module|lora_unet|lora_transformer"
    r"|lycoris|lora|decoder)[._]"
)
# peft's own layers, inside the one that it replaces.
_ADAPTED = re.compile(r"\.lora_[AB]\.")
_ORIGINAL = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "o_proj"}
_EXPECTED = "LoRA, DoRA, LoKr or LoHa weights such as 'layers.0.self_attn.q_proj.lora_A.weight'"

Parts = dict[str, torch.Tensor]


def updates_of(adapter: AdapterFile, transformer: nn.Module) -> dict[str, Update]:
    """What an adapter adds to each layer.

    Args:
        adapter: as it was read.
        transformer: a `diffusers.AceStepTransformer1DModel`, whose linear layers are looked for;
            another adapter on it is looked through.

    Returns:
        updates by the layer's name in the transformer.

    Raises:
        CheckpointError: a tensor fits nothing, or not by its shape, or a part is missing.
    """
    linears = _base_linears(transformer)
    spelled = {_flat(spelling): name for name in linears for spelling in _spellings(name)}
    grouped: dict[str, Parts] = {}
    for key, value in adapter.tensors.items():
        match = _PART.search(key)
        if match is None or match.lastgroup is None:
            continue
        grouped.setdefault(key[: match.start()], {})[match.lastgroup] = value
    known = sum(map(len, grouped.values()))
    if not any(set(parts) - {"alpha"} for parts in grouped.values()):
        held = ", ".join(f"'{name}'" for name in list(adapter.tensors)[:2]) or "nothing"
        raise CheckpointError(
            f"{adapter.path}: holds no LoRA weights; it has {held}, expected {_EXPECTED}"
        )
    if known < len(adapter.tensors):
        odd = next(key for key in adapter.tensors if _PART.search(key) is None)
        raise CheckpointError(f"{adapter.path}: has '{odd}', which is none of {_EXPECTED}")
    made: dict[str, Update] = {}
    for stem, parts in grouped.items():
        name = _find(stem, spelled)
        if name is None:
            raise CheckpointError(_no_layer(adapter.path, stem, transformer))
        if name in made:
            raise CheckpointError(f"{adapter.path}: has two updates of the layer '{name}'")
        update = _update(adapter, stem, parts)
        _check_shape(adapter.path, name, linears[name], update)
        made[name] = update
    return made


def _base_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers by name, without those of an adapter that is on the transformer."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and not _ADAPTED.search(name)
    }


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _spellings(name: str) -> list[str]:
    """A layer's name in diffusers, and in the original."""
    spellings = [name]
    for ours, original in _ORIGINAL.items():
        if name.endswith("." + ours):
            spellings.append(name.removesuffix(ours) + original)
    return spellings


def _find(stem: str, spelled: dict[str, str]) -> str | None:
    """The layer's name; prefixes come off one at a time until the rest is known."""
    while True:
        if (name := spelled.get(_flat(stem))) is not None:
            return name
        rest = _PREFIX.sub("", stem)
        if rest == stem:
            return None
        stem = rest


def _no_layer(path: Path, stem: str, transformer: nn.Module) -> str:
    while (rest := _PREFIX.sub("", stem)) != stem:
        stem = rest
    try:
        kind = type(transformer.get_submodule(stem)).__name__
    except AttributeError:
        return (
            f"{path}: this checkpoint has no layer '{stem}'; expected such as "
            "'layers.0.self_attn.q_proj'"
        )
    return f"{path}: would change '{stem}', a {kind}; only linear layers can be adapted"


def _update(adapter: AdapterFile, stem: str, parts: Parts) -> Update:
    """One layer's update from its parts.

    Raises:
        CheckpointError: parts are missing, or belong to different kinds.
    """
    for name, value in parts.items():
        if name == "alpha" and value.numel() != 1:
            raise CheckpointError(f"{adapter.path}: the alpha of '{stem}' is not one number")
        if not torch.isfinite(value.float()).all():
            raise CheckpointError(f"{adapter.path}: '{stem}' has a {name} that is not finite")
    held = set(parts) - {"alpha", "magnitude"}
    magnitude = parts.get("magnitude")
    if magnitude is not None and magnitude.ndim == 1:
        magnitude = magnitude[:, None]
    if held == {"down", "up"}:
        down, up = _matrices(adapter, stem, parts, ("down", "up"))
        _check_inner(adapter, stem, up, down)
        scale = _low_rank_scale(adapter.settings, stem, parts, down.shape[0])
        return LowRank(scale, magnitude, down, up)
    if held and all(name.startswith("lokr") for name in held):
        left, left_rank = _kronecker_factor(adapter, stem, parts, "lokr_w1")
        right, right_rank = _kronecker_factor(adapter, stem, parts, "lokr_w2")
        # Two whole factors have no rank, and by LyCORIS' rule no scale either.
        rank = right_rank or left_rank
        return Kronecker(_scale(adapter.settings, stem, parts, rank), magnitude, left, right)
    names = ("hada_w1_a", "hada_w2_a", "hada_w1_b", "hada_w2_b")
    if held == set(names):
        up_1, up_2, down_1, down_2 = _matrices(adapter, stem, parts, names)
        for up, down in ((up_1, down_1), (up_2, down_2)):
            _check_inner(adapter, stem, up, down)
        if (up_1.shape[0], down_1.shape[1]) != (up_2.shape[0], down_2.shape[1]):
            raise CheckpointError(f"{adapter.path}: the two products of '{stem}' differ in shape")
        scale = _scale(adapter.settings, stem, parts, down_1.shape[0])
        return Hadamard(scale, magnitude, (up_1, up_2), (down_1, down_2))
    raise CheckpointError(
        f"{adapter.path}: '{stem}' has only {', '.join(sorted(parts))}; expected the whole of "
        "lora_A and lora_B, lokr_w1 and lokr_w2, or hada_w1 and hada_w2"
    )


def _matrices(
    adapter: AdapterFile, stem: str, parts: Parts, names: tuple[str, ...]
) -> list[torch.Tensor]:
    found = [parts[name] for name in names]
    for name, value in zip(names, found, strict=True):
        if value.ndim != 2 or 0 in value.shape:
            raise CheckpointError(
                f"{adapter.path}: '{stem}' has a {name} of shape {tuple(value.shape)}, expected "
                "a matrix"
            )
    return found


def _check_inner(adapter: AdapterFile, stem: str, up: torch.Tensor, down: torch.Tensor) -> None:
    if up.shape[1] != down.shape[0]:
        raise CheckpointError(
            f"{adapter.path}: the two factors of '{stem}' have ranks {down.shape[0]} and "
            f"{up.shape[1]}, expected one rank"
        )


def _kronecker_factor(
    adapter: AdapterFile, stem: str, parts: Parts, name: str
) -> tuple[torch.Tensor, int | None]:
    """A factor of the Kronecker product, whole, and its rank where it was stored as two."""
    if name in parts and f"{name}_a" not in parts:
        return _matrices(adapter, stem, parts, (name,))[0], None
    pair = (f"{name}_a", f"{name}_b")
    if name in parts or not all(part in parts for part in pair):
        raise CheckpointError(
            f"{adapter.path}: '{stem}' has only {', '.join(sorted(parts))}; expected {name}, or "
            f"{pair[0]} and {pair[1]}, of both factors"
        )
    up, down = _matrices(adapter, stem, parts, pair)
    _check_inner(adapter, stem, up, down)
    return up.float() @ down.float(), down.shape[0]


def _low_rank_scale(settings: dict[str, Any], stem: str, parts: Parts, rank: int) -> float:
    if "alpha" not in parts and settings.get("use_rslora"):
        alpha = _pattern(settings, "alpha_pattern", stem, settings.get("lora_alpha", 8))
        return alpha / math.sqrt(rank)
    return _scale(settings, stem, parts, rank, "lora_alpha")


def _scale(
    settings: dict[str, Any], stem: str, parts: Parts, rank: int | None, alpha_key: str = "alpha"
) -> float:
    """alpha / rank; 1 where nothing says."""
    if "alpha" in parts:
        return float(parts["alpha"].flatten()[0]) / rank if rank else 1.0
    if alpha_key not in settings:
        return 1.0
    alpha = _pattern(settings, "alpha_pattern", stem, settings[alpha_key])
    if alpha_key == "lora_alpha":
        return alpha / (rank or 1)
    # PEFT scales LoKr and LoHa by the rank that was asked for, whatever came of it.
    return alpha / _pattern(settings, "rank_pattern", stem, settings.get("r", 8))


def _pattern(settings: dict[str, Any], key: str, stem: str, default: float) -> float:
    """PEFT's rule: the first pattern that the end of the layer's name matches."""
    for pattern, value in (settings.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", stem):
                return float(value)
        except re.error:
            raise CheckpointError(f"{key} has '{pattern}', which is no pattern") from None
    return float(default)


def _check_shape(path: Path, name: str, layer: nn.Linear, update: Update) -> None:
    expected = (layer.out_features, layer.in_features)
    if update.shape != expected:
        raise CheckpointError(
            f"{path}: made for a transformer of another width ({name} is {expected[1]} to "
            f"{expected[0]}, the adapter's {update.shape[1]} to {update.shape[0]})"
        )
    if update.magnitude is not None and tuple(update.magnitude.shape) not in (
        (expected[0], 1),
        (1, expected[1]),
    ):
        raise CheckpointError(
            f"{path}: the magnitude of {name} has shape {tuple(update.magnitude.shape)}, expected "
            f"{(expected[0], 1)} or {(1, expected[1])}"
        )
