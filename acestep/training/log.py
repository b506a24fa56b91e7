"""The record of a run: one line a step in a CSV file, and curves for TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

COLUMNS = ("step", "loss", "gradient_norm", "learning_rate", "seconds")


class LossLog:
    """Appends to `loss.csv` and, where tensorboard is installed, to an event file beside it.

    A resumed run continues the file: lines of steps that are done again are dropped first.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._path = folder / "loss.csv"
        kept = [row for row in read_log(self._path) if row["step"] < done]
        with self._path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done)

    def write(self, row: dict[str, float]) -> None:
        """Add the line of one step; its keys are `COLUMNS`."""
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(row)
        if self._board is not None:
            for name in COLUMNS[1:]:
                self._board.add_scalar(name, row[name], int(row["step"]))

    def close(self) -> None:
        """Finish the event file."""
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a `loss.csv`; none where there is no file, or where it breaks off."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [
            {name: float(row[name]) for name in COLUMNS}
            for row in csv.DictReader(stream)
            if all(row.get(name) for name in COLUMNS)
        ]
    return [row | {"step": int(row["step"])} for row in rows]
