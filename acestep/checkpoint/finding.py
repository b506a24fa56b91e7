"""Finding a checkpoint on this machine, and telling what a folder holds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from acestep import demo
from acestep.checkpoint.files import WEIGHT_INDEX, read_json
from acestep.checkpoint.folders import cache_dir, checkpoint_roots
from acestep.checkpoint.held import held_in
from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.names import SOURCES, folders_of, short_name
from acestep.checkpoint.single.parts import DIT, parts_of
from acestep.errors import CheckpointError

# `auto` takes the first of these that is here: guidance-distilled ones first, being faster.
_PREFERENCE = ("xl-turbo", "turbo", "xl-sft", "sft", "xl-base", "base")


def find(model: str = "auto", project_root: str | Path | None = None) -> Checkpoint:
    """Find a checkpoint on this machine.

    Args:
        model: `auto` (the best real checkpoint here, else the built-in one), `demo`, a
            short name (see `names.SOURCES`; in either layout), the name of a folder or single file
            in one of the `checkpoint_roots`, a path, or a Hub id that has been downloaded.
        project_root: see `checkpoint_roots`.

    Raises:
        CheckpointError: nothing of that name is here; the message says what to do.
    """
    model = model.strip() or "auto"
    roots = checkpoint_roots(project_root)
    if model == "demo":
        return _demo()
    if model == "auto":
        # Whole weights first: those in few bits are one engine's.
        local = local_checkpoints(project_root)
        found = sorted(local, key=lambda made: (made.held is not None, _rank(made)))
        return found[0] if found else _demo()
    if model in SOURCES:
        for folder in (root / name for root in roots for name in folders_of(model)):
            if checkpoint := identify(folder):
                return checkpoint
        for source in SOURCES[model]:
            if not source.original and (path := _hub_cached(source.repository)):
                return identified(path, model, source.folder)
        raise CheckpointError(
            f"checkpoint '{model}' is not on this machine; fetch it with: acestep download {model}"
        )
    named = (root / name for root in roots for name in (model, f"{model}.safetensors"))
    for candidate in (Path(model).expanduser(), *named):
        if candidate.exists():
            return identified(candidate, model)
    if is_hub_id(model):
        if path := _hub_cached(model):
            return identified(path, model, model.rpartition("/")[2])
        raise CheckpointError(
            f"no folder '{model}' here, and no such Hub repository on this machine; "
            f"fetch it with: acestep download {model}"
        )
    if (short := short_name(model)) is not None:
        raise CheckpointError(
            f"checkpoint '{model}' is not on this machine; fetch it with: acestep download {short}"
        )
    raise CheckpointError(
        f"no checkpoint folder '{model}'; give a folder, a Hub id, or one of: auto, demo, "
        + ", ".join(SOURCES)
    )


def is_hub_id(model: str) -> bool:
    """Whether a name has the form of a Hub id, owner and repository."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None and not model.startswith(".")


def local_checkpoints(project_root: str | Path | None = None) -> list[Checkpoint]:
    """Every checkpoint in the `checkpoint_roots`, without the built-in one."""
    found: dict[Path, Checkpoint] = {}
    for root in checkpoint_roots(project_root):
        if root.is_dir():
            for folder in sorted(root.iterdir()):
                if checkpoint := _listed(folder):
                    found.setdefault(folder.resolve(), checkpoint)
    return list(found.values())


def identify(folder: Path) -> Checkpoint | None:
    """What checkpoint a folder or single file holds, judged by what is there, or None."""
    if (index := folder / "model_index.json").is_file():
        return Checkpoint(folder.name, folder, "diffusers", held=held_in(index))
    if folder.is_file():
        single = folder.suffix == ".safetensors" and DIT in parts_of(folder)
        return Checkpoint(folder.stem, folder, "single") if single else None
    weights = (folder / "model.safetensors").is_file() or (folder / WEIGHT_INDEX).is_file()
    if weights and (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        if "audio_acoustic_hidden_dim" in config:
            return Checkpoint(folder.name, folder, "original")
    return None


def _listed(path: Path) -> Checkpoint | None:
    """What `identify` says; a damaged file among others is nobody's choice."""
    try:
        return identify(path)
    except CheckpointError:
        if path.is_file():
            return None
        raise


def _demo() -> Checkpoint:
    return Checkpoint("demo", demo.path(cache_dir()), "diffusers", builtin=True)


def identified(folder: Path, model: str, name: str | None = None) -> Checkpoint:
    """The checkpoint in a folder; the Hub's cache names folders by commit, so `name` helps."""
    if checkpoint := identify(folder):
        return replace(checkpoint, name=name) if name else checkpoint
    if folder.is_file():
        held = parts_of(folder) if folder.suffix == ".safetensors" else {}
        raise CheckpointError(
            f"{folder} is a file; give the folder of a checkpoint, or a safetensors file with its "
            f"DiT (this one holds {' and '.join(sorted(held)) or 'no part of one'})"
        )
    raise CheckpointError(
        f"{folder}: not an ACE-Step 1.5 checkpoint ('{model}'); expected model_index.json "
        "(diffusers layout), or config.json beside model.safetensors (original layout)"
    )


def _rank(checkpoint: Checkpoint) -> int:
    name = checkpoint.name.lower()
    for rank, variant in enumerate(_PREFERENCE):
        if all(part in name for part in variant.split("-")):
            return rank
    return len(_PREFERENCE)


def _hub_cached(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
