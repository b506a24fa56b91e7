"""One picture of a benchmark: where the time goes, and what length and batch cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acestep.bench.measure import STAGES, Row
from acestep.errors import RequestError

_COLOURS = ("#dd8452", "#4c72b0", "#55a868", "#c44e52", "#8172b3", "#bbbbbb", "#ccb974")


def draw(path: Path, title: str, compared: Sequence[Row], grown: Sequence[Row]) -> None:
    """Write a PNG.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError(
            "the picture needs matplotlib; install it with: pip install 'acestep[bench]'"
        ) from None
    panels = bool(compared) + 2 * bool(grown)
    figure = Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    figure.suptitle(title, fontsize=10)
    if compared:
        _bars(axes.pop(0), compared)
    if grown:
        _lines(axes.pop(0), [row for row in grown if row.batch == 1], "seconds", "song, s")
        at = max((row for row in grown if row.batch > 1), key=lambda row: row.batch, default=None)
        same = [row for row in grown if at is None or row.seconds == at.seconds]
        length = f"batch of {same[0].seconds:g} s songs"
        _lines(axes.pop(0), sorted(same, key=lambda row: row.batch), "batch", length)
    figure.savefig(path, format="png", dpi=110)


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    """A bar a row; those with stages are stacked to the time that the stages add up to."""
    names = [f"{row.seconds:g} s ×{row.batch}\n{row.side}" for row in rows]
    tops = [max(sum(row.stages.values()), row.warm) for row in rows]
    for at, (row, top) in enumerate(zip(rows, tops, strict=True)):
        if not row.stages:
            axes.bar(at, row.warm, color="#999999")
        base = 0.0
        for stage, colour in zip(STAGES, _COLOURS, strict=True):
            height = row.stages.get(stage, 0.0)
            axes.bar(at, height, bottom=base, color=colour, label=stage if base == 0 else None)
            base += height
        axes.text(at, top, f"{row.warm:.3g} s", ha="center", va="bottom")
    # The numbers stand above the bars, and count for nothing when the limits are chosen.
    axes.set_ylim(0, 1.1 * max(tops))
    handles = [_patch(colour) for colour in _COLOURS]
    axes.legend(handles, STAGES, fontsize=7)
    axes.set_xticks(range(len(rows)), names, fontsize=7)
    axes.set_ylabel("seconds (number: warm median, without saving)", fontsize=8)


def _patch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour)


def _lines(axes: Any, rows: Sequence[Row], along: str, label: str) -> None:
    where = [getattr(row, along) for row in rows]
    axes.plot(where, [row.warm for row in rows], "o-", color=_COLOURS[0])
    axes.set_xlabel(label)
    axes.set_ylabel("seconds", color=_COLOURS[0])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    memory = axes.twinx()
    memory.plot(where, [row.peak for row in rows], "s--", color=_COLOURS[2])
    memory.set_ylabel("peak memory, GiB", color=_COLOURS[2])
    memory.set_ylim(bottom=0)
