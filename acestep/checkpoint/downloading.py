"""Fetching checkpoints from the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from acestep.checkpoint.finding import identified
from acestep.checkpoint.folders import cache_dir
from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.names import DEFAULT_REPOSITORY, SOURCES, TEXT_ENCODER, VAE, Source
from acestep.errors import CheckpointError, first_line
from acestep.gpu_config import LM_MEMORY_GB

# The language model that lies in the default repository.
_BUNDLED = "acestep-5Hz-lm-1.7B"


def download(model: str, root: Path | None = None, layout: str | None = None) -> Checkpoint:
    """Fetch a checkpoint from the Hugging Face Hub, resuming what is there already.

    Args:
        model: a short name or a Hub id.
        root: where to put it; by default `checkpoints` in the cache.
        layout: `original` or `diffusers`, where a short name is published in both.

    Raises:
        CheckpointError: unknown name, not published in that layout, no network, no access, or
            not enough disk.
    """
    root = root or cache_dir() / "checkpoints"
    if model in SOURCES:
        source = _published(model, layout)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        source = Source(model, model.rpartition("/")[2])
    else:
        raise CheckpointError(
            f"unknown checkpoint '{model}'; give a Hub id such as ACE-Step/name, or one of: "
            + ", ".join((*SOURCES, *LM_MEMORY_GB))
        )
    if source.inside:
        wanted = [f"{part}/*" for part in (source.inside, VAE, TEXT_ENCODER)]
        _snapshot(source.repository, root, wanted)
    else:
        _snapshot(source.repository, root / source.folder, None)
        if source.original:
            _snapshot(DEFAULT_REPOSITORY, root, [f"{VAE}/*", f"{TEXT_ENCODER}/*"])
    return identified(root / source.folder, model)


def download_language_model(name: str, root: Path | None = None) -> Path:
    """Fetch a 5 Hz language model, resuming what is there already, and say where it is.

    Args:
        name: one of `LM_MEMORY_GB`.
        root: as for `download`.

    Raises:
        CheckpointError: see `download`.
    """
    root = root or cache_dir() / "checkpoints"
    if name == _BUNDLED:
        _snapshot(DEFAULT_REPOSITORY, root, [f"{name}/*"])
    else:
        _snapshot(f"ACE-Step/{name}", root / name, None)
    return root / name


def _published(model: str, layout: str | None) -> Source:
    sources = SOURCES[model]
    for source in sources:
        if layout in (None, source.layout):
            return source
    raise CheckpointError(
        f"'{model}' is not published in {layout} layout, only in {sources[0].layout}; leave the "
        "layout out"
    )


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
