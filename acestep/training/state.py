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

FREE = ("steps", "save_every", "sample_every", "sample_prompt")
"""Settings that a run may be continued with others of: what was done does not depend on them."""

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
    position = load_position(folder, config)
    if position is None:
        return None
    try:
        weights = load_file(folder / _WEIGHTS)
        optimizer = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001
        # Damaged bytes make the readers raise nearly anything; all of it means this.
        raise _damaged(folder, error) from None
    return RunState(position[0], position[1], weights, optimizer)


def load_position(folder: Path, config: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """Steps done and settings of the state in `folder`, or None where there is none.

    Raises:
        RequestError: as for `load_state`.
    """
    if not folder.is_dir():
        return None
    try:
        position = json.loads((folder / _POSITION).read_text(encoding="utf-8"))
        step, before = int(position["step"]), dict(position["config"])
    except Exception as error:  # noqa: BLE001
        raise _damaged(folder, error) from None
    names = (config.keys() | before.keys()) - set(FREE)
    changed = sorted(key for key in names if config.get(key) != before.get(key))
    if changed:
        raise RequestError(
            f"{folder} was trained with other settings ({', '.join(changed)}); give the same "
            "ones to continue, or another output to start anew"
        )
    return step, before


def _damaged(folder: Path, error: Exception) -> RequestError:
    return RequestError(
        f"{folder}: the run's state is damaged ({first_line(error)}); delete the folder to "
        "start anew"
    )
