"""Whether a checkpoint is guidance-distilled, told from its files before it is loaded."""

from __future__ import annotations

from acestep.checkpoint.files import read_json
from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.settings import is_turbo
from acestep.checkpoint.single.configs import dit_config
from acestep.checkpoint.single.parts import DIT, parts_of


def is_distilled(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is guidance-distilled, as loading it would find.

    Raises:
        CheckpointError: its config is missing or damaged, or nothing says.
    """
    if checkpoint.layout == "single":
        return bool(dit_config(parts_of(checkpoint.path)[DIT])["is_turbo"])
    inside = "transformer/config.json" if checkpoint.layout == "diffusers" else "config.json"
    file = checkpoint.path / inside
    return is_turbo(read_json(file), checkpoint.name, file)
