"""Weights from disk into modules: both layouts, checked strictly, straight to the device."""

from __future__ import annotations

import inspect
import math
import re
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep.checkpoint.checkpoints import TEXT_ENCODER, VAE, Checkpoint, read_json, weight_files
from acestep.device import DevicePolicy
from acestep.diffusion.pipeline import Pipeline
from acestep.engines.torch.addresses import align
from acestep.errors import CheckpointError, first_line

Progress = Callable[[str], None]

_COMPONENT_STEMS = ("diffusion_pytorch_model", "model")
_ATTENTION_NAMES = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_ENCODER_WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)
_MAX_HEADER = 100 * 2**20
_READERS = 4


def load(
    checkpoint: Checkpoint, policy: DevicePolicy, on_component: Progress | None = None
) -> Pipeline:
    """Load a checkpoint onto the policy's device, each component in its dtype.

    Weights are read one tensor at a time and go to their place, so that memory never
    holds a second copy of the model.

    Args:
        checkpoint: what `checkpoints.find` returned.
        policy: where the modules go and at what precision.
        on_component: told the name of each component before it is loaded.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the architecture.
    """
    say = on_component or (lambda name: None)
    if checkpoint.layout == "original":
        parts = _load_original(checkpoint.path, policy, say)
    else:
        parts = _load_diffusers(checkpoint.path, policy, say)
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    return Pipeline(scheduler=scheduler, **parts)


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


def _load_diffusers(folder: Path, policy: DevicePolicy, say: Progress) -> dict[str, Any]:
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "AceStepPipeline":
        raise CheckpointError(
            f"{folder / 'model_index.json'}: holds a {index.get('_class_name')}, "
            "expected an AceStepPipeline"
        )
    parts: dict[str, Any] = {}
    for name, cls in _component_classes().items():
        optional = name in ("audio_tokenizer", "audio_token_detokenizer")
        if optional and not (index.get(name) or [None])[0]:
            parts[name] = None
            continue
        say(name)
        parts[name] = _load_component(cls, folder / name, policy, _dtype_name(name))
    say("text_encoder")
    parts["text_encoder"] = _load_text_encoder(folder / "text_encoder", policy)
    parts["tokenizer"] = _load_tokenizer(folder / "tokenizer")
    return parts


def _load_original(folder: Path, policy: DevicePolicy, say: Progress) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    files = weight_files(folder)
    shapes = {key: shape for file in files for key, shape in _header(file).items()}
    modules = _original_modules(folder, config, shapes)

    def place(key: str) -> tuple[nn.Module, str] | None:
        target = original_name(key)
        if target is None or target[0] not in modules:
            return None
        return modules[target[0]], target[1]

    silence = _silence_latent(folder / "silence_latent.pt")
    condition_encoder = modules["condition_encoder"]
    condition_encoder.register_buffer("silence_latent", silence)
    wanted = {
        (id(module), name)
        for module in modules.values()
        for name in module.state_dict()
        if name != "silence_latent"
    }
    say("transformer")
    _fill(files, place, wanted, policy, folder)
    for module in modules.values():
        _finish(module, policy, "dit")
    say("vae")
    vae = _load_component(_component_classes()["vae"], folder.parent / VAE, policy, "vae")
    say("text_encoder")
    text_folder = folder.parent / TEXT_ENCODER
    text_encoder = _load_text_encoder(text_folder, policy)
    tokenizer = _load_tokenizer(text_folder)
    absent = {"audio_tokenizer": None, "audio_token_detokenizer": None}
    return {**absent, **modules, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}


def _original_modules(
    folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> dict[str, nn.Module]:
    """Empty modules of the widths that an original checkpoint's config and tensors say."""
    classes = _component_classes()
    own = {
        name: config[f"encoder_{name}"]
        for name in _ENCODER_WIDTHS
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
        if name != "transformer":
            # The list in the file is the transformer's; the others alternate by default.
            arguments.pop("layer_types", None)
        modules[name] = _empty(classes[name], arguments, folder / "config.json")
    return modules


def _load_component(cls: Any, folder: Path, policy: DevicePolicy, component: str) -> nn.Module:
    config_file = folder / "config.json"
    config = {k: v for k, v in read_json(config_file).items() if not k.startswith("_")}
    module = _empty(cls, config, config_file)
    files = weight_files(folder, _COMPONENT_STEMS)
    wanted = {(id(module), name) for name in module.state_dict()}
    _fill(files, lambda key: (module, key), wanted, policy, folder, component)
    return _finish(module, policy, component)


def _empty(cls: Any, config: dict[str, Any], config_file: Path) -> nn.Module:
    """A module without storage for its parameters; buffers that are not saved are real."""
    from accelerate import init_empty_weights

    from acestep.demo.recipe import old_weight_norm

    try:
        with init_empty_weights(include_buffers=False), old_weight_norm():
            module: nn.Module = cls(**config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, KeyError) as error:
        raise CheckpointError(
            f"{config_file}: does not describe a {cls.__name__} ({first_line(error)})"
        ) from None
    return module


def _finish(module: nn.Module, policy: DevicePolicy, component: str) -> nn.Module:
    dtype = policy.dtype_of(component)
    for name, buffer in module.named_buffers():
        owner, _, leaf = name.rpartition(".")
        value = buffer.to(policy.device, dtype if buffer.is_floating_point() else None)
        module.get_submodule(owner)._buffers[leaf] = value
    return align(module.eval().requires_grad_(False))


def _fill(
    files: Iterable[Path],
    place: Callable[[str], tuple[nn.Module, str] | None],
    wanted: set[tuple[int, str]],
    policy: DevicePolicy,
    folder: Path,
    component: str = "dit",
) -> None:
    """Read every tensor of the files into its place; every place must be filled once."""
    from accelerate.utils import set_module_tensor_to_device
    from safetensors import SafetensorError, safe_open

    dtype = policy.dtype_of(component)
    missing = set(wanted)
    for file in files:
        _header(file)
        try:
            with safe_open(file, framework="pt", device=str(policy.device)) as tensors:
                places: dict[str, tuple[nn.Module, str]] = {}
                for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    target = place(key)
                    if target is None or (id(target[0]), target[1]) not in wanted:
                        raise CheckpointError(f"{file}: unexpected tensor '{key}'")
                    _check_shape(file, key, *target, tensors.get_slice(key).get_shape())
                    places[key] = target

                def read(key: str) -> torch.Tensor:
                    value: torch.Tensor = tensors.get_tensor(key)
                    return value.to(dtype) if value.is_floating_point() else value

                # To an H100, one thread brought 5.5 GiB in 1.8 s, four in 1.1 s.
                with ThreadPoolExecutor(_READERS) as readers:
                    values = readers.map(read, places)
                    for (module, name), value in zip(places.values(), values, strict=True):
                        set_module_tensor_to_device(
                            module, name, policy.device, value, dtype=value.dtype
                        )
                        missing.discard((id(module), name))
        except SafetensorError as error:
            raise CheckpointError(
                f"{file}: damaged or truncated ({error}); fetch the file again"
            ) from None
    if missing:
        names = sorted(name for _, name in missing)
        raise CheckpointError(
            f"{folder}: {len(names)} tensors are missing from its weights, among them "
            + ", ".join(f"'{name}'" for name in names[:3])
        )


def _check_shape(file: Path, key: str, module: nn.Module, name: str, shape: Iterable[int]) -> None:
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    expected: torch.Tensor | None = holder._parameters.get(leaf)
    if expected is None:
        expected = holder._buffers[leaf]
    if expected is not None and tuple(shape) != tuple(expected.shape):
        raise CheckpointError(
            f"{file}: tensor '{key}' has shape {tuple(shape)}, its config asks for "
            f"{tuple(expected.shape)}"
        )


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, after checking that all its bytes are there.

    Layout: 8 bytes with the header's length, the header as JSON, then the tensors.
    """
    import json

    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(
                f"{file}: not a safetensors file, or truncated ({size} bytes); fetch it again"
            )
        try:
            header = json.loads(stream.read(length))
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise CheckpointError(f"{file}: its header is damaged; fetch the file again") from None
    if size != 8 + length + end:
        raise CheckpointError(
            f"{file}: has {size} bytes, its header says {8 + length + end}; it is truncated "
            "or was changed: fetch the file again"
        )
    return shapes


def _silence_latent(file: Path) -> torch.Tensor:
    """The stored latents of silence, from `[1, channels, frames]` to `[1, frames, channels]`."""
    if not file.is_file():
        raise CheckpointError(f"{file}: missing file; the checkpoint is incomplete")
    try:
        latent = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001
        # Unpickling damaged bytes can raise nearly anything; all of it means this.
        raise CheckpointError(f"{file}: damaged ({type(error).__name__})") from None
    if not isinstance(latent, torch.Tensor) or latent.ndim != 3 or math.prod(latent.shape) == 0:
        raise CheckpointError(f"{file}: expected a tensor of shape [1, channels, frames]")
    return latent.transpose(1, 2).contiguous()


def _load_text_encoder(folder: Path, policy: DevicePolicy) -> nn.Module:
    from transformers import AutoModel

    read_json(folder / "config.json")
    for file in weight_files(folder):
        _header(file)
    try:
        module, info = AutoModel.from_pretrained(
            folder,
            dtype=policy.dtype_of("text_encoder"),
            device_map={"": policy.device},
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: the text encoder cannot be loaded ({first_line(error)})"
        ) from None
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in info.get(kind, ())):
            raise CheckpointError(
                f"{folder}: the text encoder's weights do not fit its config "
                f"({kind.replace('_', ' ')}: {', '.join(names[:3])})"
            )
    text_encoder: nn.Module = align(module.eval().requires_grad_(False))
    return text_encoder


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: missing folder; the checkpoint is incomplete")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001
        # The tokenizer libraries raise their own kinds, down to plain Exception.
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be loaded ({first_line(error)})"
        ) from None


def _component_classes() -> dict[str, Any]:
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


def _dtype_name(component: str) -> str:
    return "vae" if component == "vae" else "dit"
