"""Modules made empty and filled from files, a tensor at a time, straight to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from acestep.checkpoint.files import header
from acestep.checkpoint.settings import DEFAULT_WINDOW, layer_types, understood
from acestep.corrections.empty_weights import without_storage
from acestep.corrections.layer_types import set_layer_types
from acestep.corrections.weight_norm import WithoutWeights, old_weight_norm
from acestep.device import DevicePolicy
from acestep.errors import CheckpointError, first_line

_READERS = 4


def empty(cls: Any, config: dict[str, Any], config_file: Path) -> nn.Module:
    """A module without storage for its parameters; buffers that are not saved are real.

    Raises:
        CheckpointError: the config does not describe one, see `settings.understood`.
    """
    config = understood(config, config_file)
    listed = config.pop("layer_types", None)
    try:
        with without_storage(), old_weight_norm(), WithoutWeights():
            module: Any = cls(**config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, KeyError) as error:
        raise CheckpointError(
            f"{config_file}: does not describe a {cls.__name__} ({first_line(error)})"
        ) from None
    if listed is not None:
        settings = {"layer_types": listed}
        window = config.get("sliding_window", DEFAULT_WINDOW)
        set_layer_types(module, lambda count: layer_types(settings, count, config_file), window)
        # Stored again with the module, from where it is read as it was here.
        module.register_to_config(**settings)
    return cast(nn.Module, module)


def finish(module: nn.Module, policy: DevicePolicy, component: str) -> nn.Module:
    dtype = policy.dtype_of(component)
    for name, buffer in module.named_buffers():
        owner, kept = _owner(Place(module, name))
        given = None if kept or not buffer.is_floating_point() else dtype
        owner._buffers[name.rpartition(".")[2]] = buffer.to(policy.device, given)
    return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class Place:
    """Where a stored tensor belongs.

    Attributes:
        module: the module.
        name: of the parameter or buffer in it.
        convert: makes the value of what is stored, where that has another shape or needs a scale.
    """

    module: nn.Module
    name: str
    convert: Callable[[torch.Tensor], torch.Tensor] | None = None


Room = Callable[[nn.Module], object]
"""Makes room in an empty module for weights in few bits, where a checkpoint holds them so."""

Put = Callable[[Path, Any, Mapping[str, Place], torch.dtype], None]
"""Brings tensors to their places: the file they are in, that file as safetensors opened it, places
by the tensors' names, and the dtype they are to have."""


def fill(
    files: Iterable[Path],
    place: Callable[[str], Place | None],
    wanted: set[tuple[int, str]],
    policy: DevicePolicy,
    folder: Path,
    component: str = "dit",
    skip: Callable[[str], bool] | None = None,
    by_host: bool = False,
    put: Put | None = None,
) -> None:
    """Read every tensor of the files into its place; every place must be filled once.

    Args:
        files: safetensors files.
        place: from a tensor's name to its place, or None where it has none.
        wanted: every place, as (id of the module, name).
        policy: where tensors go, and in which dtype.
        folder: named in messages.
        component: decides the dtype.
        skip: whether a tensor is no concern of these modules.
        by_host: read on the host, for dtypes that a device may not know.
        put: where tensors go instead, in an engine whose arrays are not PyTorch's; the modules
            stay empty, and say what fits.
    """
    from safetensors import SafetensorError, safe_open

    missing = set(wanted)
    device = "cpu" if by_host else str(policy.device)
    for file in files:
        header(file)
        try:
            with safe_open(file, framework="pt", device=device) as tensors:
                places: dict[str, Place] = {}
                for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if skip is not None and skip(key):
                        continue
                    target = place(key)
                    if target is None or (id(target.module), target.name) not in wanted:
                        raise CheckpointError(f"{file}: unexpected tensor '{key}'")
                    if target.convert is None:
                        check_shape(file, key, target, tensors.get_slice(key).get_shape())
                    places[key] = target
                dtype = policy.dtype_of(component)
                if put is None:
                    _place_all(file, tensors, places, policy, dtype)
                else:
                    put(file, tensors, places, dtype)
        except SafetensorError as error:
            raise CheckpointError(
                f"{file}: damaged or truncated ({error}); fetch the file again"
            ) from None
        missing -= {(id(at.module), at.name) for at in places.values()}
    if missing:
        names = sorted(name for _, name in missing)
        raise CheckpointError(
            f"{folder}: {len(names)} tensors are missing from its weights, among them "
            + ", ".join(f"'{name}'" for name in names[:3])
        )


def _place_all(
    file: Path, tensors: Any, places: dict[str, Place], policy: DevicePolicy, dtype: torch.dtype
) -> None:
    def read(keys: list[str]) -> list[torch.Tensor]:
        return [one(places[key], key) for key in keys]

    def one(at: Place, key: str) -> torch.Tensor:
        value: torch.Tensor = tensors.get_tensor(key)
        if at.convert is not None:
            value = at.convert(value)
            check_shape(file, key, at, value.shape)
        kept = _owner(at)[1] or not value.is_floating_point()
        return value.to(policy.device, None if kept else dtype)

    keys = list(places)
    parts = [keys[start::_READERS] for start in range(_READERS)]
    states: dict[int, tuple[nn.Module, dict[str, torch.Tensor]]] = {}
    # To an H100, one thread brought 5.5 GiB in 1.8 s, four in 1.1 s.
    with ThreadPoolExecutor(_READERS) as readers:
        for part, values in zip(parts, readers.map(read, parts), strict=True):
            for key, value in zip(part, values, strict=True):
                at = places[key]
                states.setdefault(id(at.module), (at.module, {}))[1][at.name] = value
    for module, state in states.values():
        module.load_state_dict(state, strict=False, assign=True)


def _owner(at: Place) -> tuple[nn.Module, bool]:
    """The part of a module that a place is in, and whether its tensors keep the dtypes that they
    are stored in, as weights in few bits do."""
    owner, _, _ = at.name.rpartition(".")
    part = at.module.get_submodule(owner)
    return part, bool(getattr(part, "as_stored", False))


def check_shape(file: Path, key: str, at: Place, shape: Iterable[int]) -> None:
    """Refuse a tensor that has not the shape of its place.

    Raises:
        CheckpointError: names the file and the tensor.
    """
    (holder, _), leaf = _owner(at), at.name.rpartition(".")[2]
    expected: torch.Tensor | None = holder._parameters.get(leaf)
    if expected is None:
        expected = holder._buffers[leaf]
    if expected is not None and tuple(shape) != tuple(expected.shape):
        raise CheckpointError(
            f"{file}: tensor '{key}' has shape {tuple(shape)}, its config asks for "
            f"{tuple(expected.shape)}"
        )


def component_classes() -> dict[str, Any]:
    from diffusers.models import AceStepTransformer1DModel, AutoencoderOobleck
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )

    return {
        "transformer": AceStepTransformer1DModel,
        "condition_encoder": AceStepConditionEncoder,
        "audio_tokenizer": AceStepAudioTokenizer,
        "audio_token_detokenizer": AceStepAudioTokenDetokenizer,
        "vae": AutoencoderOobleck,
    }
