"""Checkpoints: where they are, how they are fetched, and what their folders hold."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acestep import demo
from acestep.errors import CheckpointError, first_line

DEFAULT_REPOSITORY = "ACE-Step/Ace-Step1.5"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
VAE = "vae"
WEIGHT_INDEX = "model.safetensors.index.json"

TURBO_TASKS = ("text2music", "repaint", "cover")
ALL_TASKS = (*TURBO_TASKS, "extract", "lego", "complete")


@dataclass(frozen=True)
class Source:
    """Where a short name's files come from on the Hugging Face Hub.

    Attributes:
        repository: the Hub id that holds the diffusion transformer.
        folder: the folder its files are kept in locally.
        inside: folder inside the repository that holds the transformer, or empty.
        original: original layout, which needs the default repository's VAE and text
            encoder beside it.
    """

    repository: str
    folder: str
    inside: str = ""
    original: bool = False


# Hub ids: the table of variants in diffusers' documentation of AceStepPipeline.
SOURCES = {
    "turbo": Source(DEFAULT_REPOSITORY, "acestep-v15-turbo", "acestep-v15-turbo", True),
    "base": Source("ACE-Step/acestep-v15-base", "acestep-v15-base", original=True),
    "sft": Source("ACE-Step/acestep-v15-sft", "acestep-v15-sft", original=True),
    "xl-turbo": Source("ACE-Step/acestep-v15-xl-turbo-diffusers", "acestep-v15-xl-turbo-diffusers"),
}
# `auto` takes the first of these that is here: guidance-distilled ones first, being faster.
_PREFERENCE = ("xl-turbo", "turbo", "xl-sft", "sft", "xl-base", "base")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found on disk.

    Attributes:
        name: what to call it in messages.
        path: its folder; in the original layout the folder of the transformer.
        layout: `diffusers` or `original`.
        builtin: whether it is the one that comes with this package.
    """

    name: str
    path: Path
    layout: str
    builtin: bool = False


def cache_dir() -> Path:
    """The folder for what this package makes or downloads (`ACESTEP_CACHE` moves it)."""
    if text := os.environ.get("ACESTEP_CACHE", "").strip():
        return Path(text).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(base).expanduser() / "acestep"


def checkpoint_roots(project_root: str | Path | None = None) -> list[Path]:
    """The folders searched for checkpoints, in order.

    `ACESTEP_CHECKPOINTS` (folders as in PATH), then `checkpoints` under the project root,
    under the current folder and in the cache.
    """
    listed = os.environ.get("ACESTEP_CHECKPOINTS", "").split(os.pathsep)
    roots = [Path(text).expanduser() for text in listed if text.strip()]
    if project_root:
        roots += [Path(project_root) / "checkpoints", Path(project_root)]
    roots += [Path("checkpoints"), cache_dir() / "checkpoints"]
    return list(dict.fromkeys(roots))


def find(model: str = "auto", project_root: str | Path | None = None) -> Checkpoint:
    """Find a checkpoint on this machine.

    Args:
        model: `auto` (the best real checkpoint here, else the built-in one), `demo`, a
            short name (`turbo`, `base`, `sft`, `xl-turbo`), the name of a folder in one of
            the `checkpoint_roots`, a path, or a Hub id that has been downloaded.
        project_root: see `checkpoint_roots`.

    Raises:
        CheckpointError: nothing of that name is here; the message says what to do.
    """
    model = model.strip() or "auto"
    roots = checkpoint_roots(project_root)
    if model == "demo":
        return _demo()
    if model == "auto":
        found = sorted(local_checkpoints(project_root), key=_rank)
        return found[0] if found else _demo()
    if model in SOURCES:
        source = SOURCES[model]
        for root in roots:
            if checkpoint := identify(root / source.folder):
                return checkpoint
        if not source.original and (path := _hub_cached(source.repository)):
            return _identified(path, model, source.folder)
        raise CheckpointError(
            f"checkpoint '{model}' is not on this machine; fetch it with: acestep download {model}"
        )
    for candidate in (Path(model).expanduser(), *(root / model for root in roots)):
        if candidate.exists():
            return _identified(candidate, model)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith("."):
        if path := _hub_cached(model):
            return _identified(path, model, model.rpartition("/")[2])
        raise CheckpointError(
            f"no folder '{model}' here, and no such Hub repository on this machine; "
            f"fetch it with: acestep download {model}"
        )
    raise CheckpointError(
        f"no checkpoint folder '{model}'; give a folder, a Hub id, or one of: auto, demo, "
        + ", ".join(SOURCES)
    )


def local_checkpoints(project_root: str | Path | None = None) -> list[Checkpoint]:
    """Every checkpoint in the `checkpoint_roots`, without the built-in one."""
    found: dict[Path, Checkpoint] = {}
    for root in checkpoint_roots(project_root):
        if root.is_dir():
            for folder in sorted(root.iterdir()):
                if checkpoint := identify(folder):
                    found.setdefault(folder.resolve(), checkpoint)
    return list(found.values())


def identify(folder: Path) -> Checkpoint | None:
    """What checkpoint a folder holds, judged by its files, or None."""
    if (folder / "model_index.json").is_file():
        return Checkpoint(folder.name, folder, "diffusers")
    weights = (folder / "model.safetensors").is_file() or (folder / WEIGHT_INDEX).is_file()
    if weights and (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        if "audio_acoustic_hidden_dim" in config:
            return Checkpoint(folder.name, folder, "original")
    return None


def download(model: str, root: Path | None = None) -> Checkpoint:
    """Fetch a checkpoint from the Hugging Face Hub, resuming what is there already.

    Args:
        model: a short name or a Hub id.
        root: where to put it; by default `checkpoints` in the cache.

    Raises:
        CheckpointError: unknown name, no network, no access, or not enough disk.
    """
    root = root or cache_dir() / "checkpoints"
    if model in SOURCES:
        source = SOURCES[model]
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        source = Source(model, model.rpartition("/")[2])
    else:
        raise CheckpointError(
            f"unknown checkpoint '{model}'; give a Hub id such as ACE-Step/name, or one of: "
            + ", ".join(SOURCES)
        )
    if source.inside:
        wanted = [f"{part}/*" for part in (source.inside, VAE, TEXT_ENCODER)]
        _snapshot(source.repository, root, wanted)
    else:
        _snapshot(source.repository, root / source.folder, None)
        if source.original:
            _snapshot(DEFAULT_REPOSITORY, root, [f"{VAE}/*", f"{TEXT_ENCODER}/*"])
    return _identified(root / source.folder, model)


def tasks_of(is_turbo: bool) -> tuple[str, ...]:
    """The tasks a checkpoint can do; turbo checkpoints were distilled for three."""
    return TURBO_TASKS if is_turbo else ALL_TASKS


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing file; the checkpoint is incomplete") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({first_line(error)})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def weight_files(folder: Path, stems: Sequence[str] = ("model",)) -> list[Path]:
    """The safetensors files of one module: a single file, or every shard of its index.

    Raises:
        CheckpointError: there are none, or a shard that the index names is missing.
    """
    for stem in stems:
        single = folder / f"{stem}.safetensors"
        if single.is_file():
            return [single]
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return list(_shards(index))
    names = " or ".join(f"{stem}.safetensors" for stem in stems)
    raise CheckpointError(f"{folder}: no weights here; expected {names} (or its index and shards)")


def _shards(index: Path) -> Iterator[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no 'weight_map' that names the shards")
    for name in sorted(set(weight_map.values())):
        shard = index.parent / str(name)
        if shard.parent != index.parent:
            raise CheckpointError(f"{index}: shard name '{name}' leads out of the folder")
        if not shard.is_file():
            raise CheckpointError(f"{shard}: missing; {index.name} names it as a shard")
        yield shard


def _demo() -> Checkpoint:
    return Checkpoint("demo", demo.path(cache_dir()), "diffusers", builtin=True)


def _identified(folder: Path, model: str, name: str | None = None) -> Checkpoint:
    """The checkpoint in a folder; the Hub's cache names folders by commit, so `name` helps."""
    if checkpoint := identify(folder):
        return replace(checkpoint, name=name) if name else checkpoint
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder of a checkpoint")
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


def _snapshot(repository: str, target: Path, patterns: list[str] | None) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        snapshot_download(repository, local_dir=target, allow_patterns=patterns)
    except (GatedRepoError, RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(
            f"'{repository}' is not on the Hugging Face Hub, or not open to you; check the "
            "name, or log in with: hf auth login"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError) as e:
        raise CheckpointError(
            f"cannot reach the Hugging Face Hub for '{repository}' ({first_line(e)}); "
            "check the network and run the same command again: it resumes"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"cannot store '{repository}' in {target}: {first_line(error)}"
        ) from None
