"""Checkpoints in few bits: made once in a folder of their own, which loads without the original."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep.checkpoint.held import ENTRY, Held, held_in
from acestep.checkpoint.kinds import Checkpoint, stored_in
from acestep.checkpoint.loading import SMALL, Progress, load
from acestep.checkpoint.modules import Place, check_shape, component_classes
from acestep.checkpoint.single.loading import SILENT_FRAMES
from acestep.demo import make_folder
from acestep.device import resolve
from acestep.errors import CheckpointError, RequestError

GROUP = 64
"""Rows of a weight that is made small are whole groups of so many inputs, in every engine."""

Packed = dict[str, torch.Tensor]
Pack = Callable[[torch.Tensor], Packed]
"""Of a layer's weight `[outputs, inputs]`: what an engine holds in its place, by the layer's names."""

_PLAIN = (torch.float32, torch.bfloat16, torch.float16)


class Hollow(nn.Module):
    """A linear layer's place, with room for what an engine holds of it in few bits.

    Args:
        linear: the layer, which may be empty.
        room: names of what is held, with shape and dtype.
    """

    as_stored = True
    """Its tensors keep the dtypes that they are stored in."""

    def __init__(
        self, linear: nn.Linear, room: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_parameter("bias", linear.bias)
        for name, (shape, dtype) in room.items():
            empty = torch.empty(shape, dtype=dtype, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))


def small_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a module that are made small, by their names: those of its stacks. What
    embeds, and what leaves a model, is small and sensitive."""
    for path, part in module.named_modules():
        if type(part) is nn.Linear and "layers." in path and part.in_features % GROUP == 0:
            yield path, part


def put_in(module: nn.Module, path: str, layer: nn.Module) -> None:
    """A layer in the place of one of a module."""
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, layer)


@dataclass
class _Taken:
    """The tensors of a checkpoint by module, those of small layers packed as they come."""

    pack: Pack

    def __post_init__(self) -> None:
        self.tensors: dict[int, Packed] = {}
        self._small: dict[int, set[str]] = {}
        classes = component_classes()
        self._whole = tuple(cls for name, cls in classes.items() if name not in SMALL)

    def __call__(
        self, file: Path, tensors: Any, places: Mapping[str, Place], dtype: torch.dtype
    ) -> None:
        for key, place in places.items():
            value = tensors.get_tensor(key)
            value = value if place.convert is None else place.convert(value)
            check_shape(file, key, place, value.shape)
            # As it is stored, unless that is a form of some few bits itself.
            value = value if value.dtype in _PLAIN else value.to(dtype)
            held = self.tensors.setdefault(id(place.module), {})
            held.update(packed_or_not(place.name, value, self._small_of(place.module), self.pack))

    def _small_of(self, module: nn.Module) -> set[str]:
        if id(module) not in self._small:
            whole = isinstance(module, self._whole)
            names = () if whole else (f"{path}.weight" for path, _ in small_layers(module))
            self._small[id(module)] = set(names)
        return self._small[id(module)]


def packed_or_not(name: str, value: torch.Tensor, small: set[str], pack: Pack) -> Packed:
    """A tensor under its name, or what is held of it where it is a small layer's weight."""
    if name not in small:
        return {name: value.contiguous()}
    layer = name.removesuffix("weight")
    return {layer + part: made.contiguous() for part, made in pack(value).items()}


def saved_small(
    checkpoint: Checkpoint,
    target: Path,
    engine: str,
    kind: str,
    pack: Pack,
    on_component: Progress | None = None,
) -> Path:
    """A folder with a checkpoint in few bits, in diffusers' layout, made where it is not there yet.

    Its tensors are in the precision in which the checkpoint stores them: loaded in that it is equal to
    the bit to what is made small at load.

    Args:
        checkpoint: what `finding.find` returned.
        target: the folder to make, whole or not at all.
        engine: whose form is written.
        kind: one of `device.QUANTIZATIONS`.
        pack: the engine's.
        on_component: told the name of each component before it is read.

    Returns:
        the target.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged.
        RequestError: it is in few bits already, or something else is where the folder goes.
    """
    if checkpoint.held is not None:
        raise RequestError(
            f"{checkpoint.name} is in {checkpoint.held.kind} already; name the checkpoint that it "
            "was made of"
        )
    held = Held(engine, kind, stored_in(checkpoint))
    if is_made(target, "model_index.json", held):
        return target
    half = "bfloat16" if held.stored in ("BF16", "F16") else "float32"
    taken = _Taken(pack)
    parts = load(checkpoint, resolve("cpu", dtype=half), on_component, taken)
    encoder = parts["condition_encoder"]
    if "silence_latent" not in taken.tensors[id(encoder)]:
        if encoder.silence_latent is None:
            raise CheckpointError(
                f"{checkpoint.path}: has no latents of silence, which a folder in few bits keeps; put "
                "silence_latent.pt beside it"
            )
        # As long as diffusers' module has it.
        long = encoder.silence_latent.repeat(
            1, -(-SILENT_FRAMES // encoder.silence_latent.shape[1]), 1
        )
        taken.tensors[id(encoder)]["silence_latent"] = long[:, :SILENT_FRAMES].contiguous()
    make_folder(target, lambda folder: _write(folder, parts, taken.tensors, held))
    return target


def is_made(target: Path, index: str, held: Held) -> bool:
    """Whether a folder holds what is to be made.

    Args:
        target: the folder.
        index: its file that says so.
        held: what is wanted.

    Raises:
        RequestError: something else is there.
    """
    if not target.exists():
        return False
    if (target / index).is_file() and held_in(target / index) == held:
        return True
    raise RequestError(
        f"{target} is there and holds no weights in {held.kind} for the engine '{held.engine}'; remove "
        "it, or name another folder with --to"
    )


def _write(folder: Path, parts: dict[str, Any], tensors: dict[int, Packed], held: Held) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    index: dict[str, Any] = {"_class_name": "AceStepPipeline", ENTRY: held.entry}
    for name, part in parts.items():
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
        if part is None:
            index[name] = [None, None]
        elif id(part) not in tensors:
            part.save_pretrained(folder / name)
        else:
            config: Any = part
            # diffusers' modules write theirs; of transformers' the config does.
            (getattr(config, "save_config", None) or config.config.save_pretrained)(folder / name)
            save_file(tensors.pop(id(part)), folder / name / "model.safetensors", {"format": "pt"})
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")
