"""A checkpoint from disk into modules: either layout, checked strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from acestep.checkpoint.components import (
    load_component,
    load_text_encoder,
    load_tokenizer,
    load_vae,
    silence_latent,
)
from acestep.checkpoint.files import header, read_json, weight_files
from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.modules import Place, Put, Room, component_classes, fill, finish
from acestep.checkpoint.names import TEXT_ENCODER, VAE
from acestep.checkpoint.original import original_modules, original_name
from acestep.checkpoint.settings import with_kind
from acestep.checkpoint.single.loading import load_single
from acestep.device import DevicePolicy
from acestep.errors import CheckpointError, RequestError

Progress = Callable[[str], None]

SMALL = ("transformer", "condition_encoder", "text_encoder", "audio_token_detokenizer")
"""The components whose stacks may be held in few bits."""


def load(
    checkpoint: Checkpoint,
    policy: DevicePolicy,
    on_component: Progress | None = None,
    put: Put | None = None,
    room: Room | None = None,
) -> dict[str, Any]:
    """Load a checkpoint onto the policy's device, each component in its dtype.

    Weights are read one tensor at a time and go to their place, so that memory never
    holds a second copy of the model.

    Args:
        checkpoint: what `finding.find` returned.
        policy: where the modules go and at what precision.
        on_component: told the name of each component before it is loaded.
        put: where tensors go instead of into the modules, which stay empty; see `modules.fill`.
        room: of an engine whose form of few bits the checkpoint is in; see `modules.Room`.

    Returns:
        the components of a `diffusers.AceStepPipeline` by its names for them, without the
        scheduler; None for the audio tokenizer and its inverse where the checkpoint has none.
        With `put`, the condition encoder's `silence_latent` is None where none is stored.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the architecture.
        RequestError: it is in few bits, and whole weights are needed.
    """
    if checkpoint.held is not None and room is None:
        raise RequestError(
            f"{checkpoint.name} is held in {checkpoint.held.kind}, and whole weights are needed here; "
            "name the checkpoint that it was made of"
        )
    say = on_component or (lambda name: None)
    if checkpoint.layout == "single":
        return load_single(checkpoint, policy, say, put)
    if checkpoint.layout == "original":
        return _load_original(checkpoint, policy, say, put)
    return _load_diffusers(checkpoint, policy, say, put, room)


def _load_diffusers(
    checkpoint: Checkpoint, policy: DevicePolicy, say: Progress, put: Put | None, room: Room | None
) -> dict[str, Any]:
    folder = checkpoint.path
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "AceStepPipeline":
        raise CheckpointError(
            f"{folder / 'model_index.json'}: holds a {index.get('_class_name')}, "
            "expected an AceStepPipeline"
        )
    parts: dict[str, Any] = {}
    for name, cls in component_classes().items():
        optional = name in ("audio_tokenizer", "audio_token_detokenizer")
        if optional and not (index.get(name) or [None])[0]:
            parts[name] = None
            continue
        say(name)
        file = folder / name / "config.json"
        config = {k: v for k, v in read_json(file).items() if not k.startswith("_")}
        if name == "transformer":
            config = with_kind(config, checkpoint.name, file)
        small = room if name in SMALL else None
        parts[name] = load_component(
            cls, folder / name, config, policy, _dtype_name(name), put, small
        )
    say("text_encoder")
    parts["text_encoder"] = load_text_encoder(folder / "text_encoder", policy, put, room)
    parts["tokenizer"] = load_tokenizer(folder / "tokenizer")
    return parts


def _load_original(
    checkpoint: Checkpoint, policy: DevicePolicy, say: Progress, put: Put | None
) -> dict[str, Any]:
    folder = checkpoint.path
    config_file = folder / "config.json"
    config = with_kind(read_json(config_file), checkpoint.name, config_file)
    files = weight_files(folder)
    shapes = {key: shape for file in files for key, shape in header(file).items()}
    modules = original_modules(config, shapes, config_file)

    def place(key: str) -> Place | None:
        target = original_name(key)
        if target is None or target[0] not in modules:
            return None
        return Place(modules[target[0]], target[1])

    silence = silence_latent(folder / "silence_latent.pt")
    condition_encoder = modules["condition_encoder"]
    condition_encoder.register_buffer("silence_latent", silence)
    wanted = {
        (id(module), name)
        for module in modules.values()
        for name in module.state_dict()
        if name != "silence_latent"
    }
    _check_beside(folder.parent)
    say("transformer")
    fill(files, place, wanted, policy, folder, put=put)
    for module in modules.values():
        finish(module, policy, "dit")
    say("vae")
    vae = load_vae(folder.parent / VAE, policy, put)
    say("text_encoder")
    text_folder = folder.parent / TEXT_ENCODER
    text_encoder = load_text_encoder(text_folder, policy, put)
    tokenizer = load_tokenizer(text_folder)
    absent = {"audio_tokenizer": None, "audio_token_detokenizer": None}
    return {**absent, **modules, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}


def _check_beside(root: Path) -> None:
    """Refuse an original checkpoint whose VAE and text encoder were not fetched with it."""
    for name in (VAE, TEXT_ENCODER):
        if not (root / name).is_dir():
            raise CheckpointError(
                f"{root / name}: missing folder; the VAE and the text encoder, which checkpoints "
                "in the original layout share, come with: acestep download turbo"
            )


def _dtype_name(component: str) -> str:
    return "vae" if component == "vae" else "dit"
