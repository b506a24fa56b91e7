"""Where the parts are that a single file does not hold: beside it, or in another checkpoint.

ComfyUI keeps its models in sibling folders (`diffusion_models`, `text_encoders`, `vae`); this
package keeps folders in the original or diffusers layout in its roots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from acestep.checkpoint.files import read_json
from acestep.checkpoint.folders import checkpoint_roots
from acestep.checkpoint.names import TEXT_ENCODER as TEXT_FOLDER
from acestep.checkpoint.names import VAE as VAE_FOLDER
from acestep.checkpoint.single.parts import TEXT_ENCODER, VAE, Part, parts_of
from acestep.errors import CheckpointError

_SIBLINGS = {VAE: ("vae",), TEXT_ENCODER: ("text_encoders", "clip")}
_INSIDE = {VAE: (VAE_FOLDER,), TEXT_ENCODER: (TEXT_FOLDER, "text_encoder")}


def part_beside(file: Path, kind: str, fits: Callable[[Part], bool]) -> Part | None:
    """A part of the wanted kind in another single file beside this one.

    Args:
        file: the checkpoint's.
        kind: of the part.
        fits: whether a part goes with the checkpoint.

    Raises:
        CheckpointError: several files fit and none of them is named for ACE-Step.
    """
    around = file.absolute().parent
    found: dict[Path, Part] = {}
    for folder in (around, *(around.parent / name for name in _SIBLINGS[kind])):
        if not folder.is_dir():
            continue
        for other in sorted(folder.glob("*.safetensors")):
            part = None if other.samefile(file) else _fitting(other, kind, fits)
            if part is not None:
                found.setdefault(other.resolve(), part)
    if len(found) > 1:
        named = {path: part for path, part in found.items() if "ace" in path.name.lower()}
        found = named or found
    if len(found) > 1:
        names = " and ".join(path.name for path in list(found)[:2])
        raise CheckpointError(
            f"{file}: has no {kind}, and {names} both fit it; keep one of them there"
        )
    return next(iter(found.values()), None)


def folder_beside(file: Path, kind: str, fits: Callable[[dict[str, object]], bool]) -> Path | None:
    """A folder with the wanted part in the original or the diffusers layout."""
    for folder in _folders(file, _INSIDE[kind]):
        if (folder / "config.json").is_file() and fits(read_json(folder / "config.json")):
            return folder
    return None


def tokenizer_folders(file: Path) -> Iterator[Path]:
    """Folders that hold a tokenizer, the nearest first."""
    around = file.absolute().parent
    near = (around, *(around.parent / name for name in _SIBLINGS[TEXT_ENCODER]))
    for folder in (*near, *_folders(file, ("tokenizer", TEXT_FOLDER))):
        if (folder / "tokenizer.json").is_file():
            yield folder


def silence_files(file: Path) -> Iterator[Path]:
    """Stored latents of silence, the nearest first."""
    around = file.absolute().parent
    for folder in (around, *(f for root in checkpoint_roots() for f in _children(root))):
        if (folder / "silence_latent.pt").is_file():
            yield folder / "silence_latent.pt"


def _folders(file: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Folders of these names beside the file, in the roots, and in the checkpoints there."""
    for root in (file.absolute().parent, *checkpoint_roots()):
        for folder in (root, *_children(root)):
            yield from (folder / name for name in names if (folder / name).is_dir())


def _children(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir()) if root.is_dir() else []


def _fitting(file: Path, kind: str, fits: Callable[[Part], bool]) -> Part | None:
    """The part of a neighbour, which may be anything: another model's file, or half of one."""
    try:
        part = parts_of(file).get(kind)
        return part if part is not None and fits(part) else None
    except CheckpointError:
        return None
