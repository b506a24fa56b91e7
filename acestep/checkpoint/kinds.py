"""What a checkpoint is, and what its kind can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.checkpoint.files import STEMS, most_stored
from acestep.checkpoint.held import Held
from acestep.demo import MODEL_VERSION

TURBO_TASKS = ("text2music", "repaint", "cover")
ALL_TASKS = (*TURBO_TASKS, "extract", "lego", "complete")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found on disk.

    Attributes:
        name: what to call it in messages.
        path: its folder; in the original layout the folder of the transformer; of a single file
            the file.
        layout: `diffusers`, `original` or `single`.
        builtin: whether it is the one that comes with this package.
        held: how it holds its weights, where that is in few bits.
    """

    name: str
    path: Path
    layout: str
    builtin: bool = False
    held: Held | None = None


def stored_in(checkpoint: Checkpoint) -> str:
    """The dtype that most of a transformer's weights are stored in, such as `BF16`."""
    if checkpoint.held is not None:
        return checkpoint.held.stored
    if checkpoint.layout == "diffusers":
        return most_stored(checkpoint.path / "transformer", STEMS)
    return most_stored(checkpoint.path)


def tasks_of(is_turbo: bool) -> tuple[str, ...]:
    """The tasks a checkpoint can do; turbo checkpoints were distilled for three."""
    return TURBO_TASKS if is_turbo else ALL_TASKS


def is_xl(config: Any) -> bool:
    """Whether a transformer's config is of ACE-Step 1.5 XL: its conditions have a width of
    their own. Those of our own recipe have one too, and are otherwise built like the 2B."""
    version = str(getattr(config, "model_version", None) or "")
    own = getattr(config, "encoder_hidden_size", None)
    return own is not None and not version.startswith(MODEL_VERSION)
