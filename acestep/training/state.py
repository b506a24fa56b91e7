"""Checkpoints of a run: weights, optimiser and position, written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from acestep.errors import RequestError, first_line

_WEIGHTS, _OPTIMIZER, _POSITION = "weights.safetensors", "optimizer.pt", "run.json"


@dataclass
class RunState:
    """Where a run stands.

    The order of the data, the noise and the crops of a step follow from the seed and the
    step's number, so the number is the position and the state of the random generators.

    Attributes:
        step: steps done.
        config: the settings, as plain data; a run is continued only with the same.
        weights: trained weights by name, on the host.
        optimizer: the optimiser's state.
    """

    step: int
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]


def save_state(folder: Path, state: RunState) -> None:
    """Write a state to `folder`, replacing the one there only when the new one is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = work / "old"
    try:
        new = work / "new"
        new.mkdir()
        save_file({k: v.contiguous() for k, v in state.weights.items()}, new / _WEIGHTS)
        torch.save(state.optimizer, new / _OPTIMIZER)
        position = {"step": state.step, "config": state.config}
        (new / _POSITION).write_text(json.dumps(position, indent=2), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_state(folder: Path, config: dict[str, Any]) -> RunState | None:
    """The state in `folder`, or None where there is none.

    Args:
        folder: what `save_state` wrote.
        config: the settings of the run that wants to continue.

    Raises:
        RequestError: the state is damaged, or belongs to a run with other settings.
    """
    if not folder.is_dir():
        return None
    try:
        position = json.loads((folder / _POSITION).read_text(encoding="utf-8"))
        weights = load_file(folder / _WEIGHTS)
        optimizer = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001
        # Damaged bytes make the readers raise nearly anything; all of it means this.
        raise RequestError(
            f"{folder}: the run's state is damaged ({first_line(error)}); delete the folder to "
            "start anew"
        ) from None
    before = position["config"]
    changed = sorted(
        key for key in config.keys() | before.keys() if config.get(key) != before.get(key)
    )
    if changed:
        raise RequestError(
            f"{folder} was trained with other settings ({', '.join(changed)}); give the same "
            "ones to continue, or another output to start anew"
        )
    return RunState(position["step"], before, weights, optimizer)
