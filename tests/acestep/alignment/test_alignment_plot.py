"""The picture of an alignment: where the map, the path and the labels are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acestep.alignment import plot as plot
from acestep.alignment.types import SentenceTimestamp
from acestep.errors import RequestError

ENERGY = np.kron(np.eye(6), np.ones((1, 10)))
PATH = np.array([[j // 10, j] for j in range(60)])


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.convert("RGB")).astype(int)


def is_path(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray((image == np.array(plot.PATH)).all(axis=-1))


def test_map_and_path_are_where_they_belong() -> None:
    image = plot.draw_alignment(ENERGY, PATH, [], 6.0)
    drawn = pixels(image)
    height = plot.MAP_HEIGHT[0]
    cell = drawn[plot.TOP + 5, plot.LEFT + 60]  # the first token, in its frames, off the path
    outside = drawn[plot.TOP + 5, plot.LEFT + plot.MAP_WIDTH - 60]
    assert cell.sum() > 600 > 200 > outside.sum()
    on_path = is_path(drawn[plot.TOP : plot.TOP + height, plot.LEFT : plot.LEFT + plot.MAP_WIDTH])
    for token in range(6):
        row = int((token + 0.5) * height / 6)
        across = np.flatnonzero(on_path[row])
        assert 200 * token <= across.min() <= across.max() <= 200 * (token + 1)
        assert across.size > 150


def test_lines_are_labelled_at_their_rows() -> None:
    lines = [
        SentenceTimestamp("first", 0.0, 1.0, (), row=0),
        SentenceTimestamp("a very long line " * 9, 3.0, 6.0, (), row=3),
        SentenceTimestamp("hidden: too close", 3.0, 6.0, (), row=3),
    ]
    margin = pixels(plot.draw_alignment(ENERGY, PATH, lines, 6.0))[:, : plot.LEFT - 8]
    inked = np.flatnonzero((margin < 128).any(axis=(1, 2)))
    groups = np.split(inked, np.flatnonzero(np.diff(inked) > 8) + 1)
    tops = [group[0] - plot.TOP for group in groups]
    assert len(tops) == 2
    assert 0 <= tops[0] < plot.LINE_HEIGHT
    assert 0 <= tops[1] - plot.MAP_HEIGHT[0] // 2 < plot.LINE_HEIGHT
    assert not (margin[:, -8:] < 128).any()  # cut before the map


@pytest.mark.parametrize("seconds", [0.4, 6.0, 600.0, 5000.0])
def test_time_has_a_readable_number_of_ticks(seconds: float) -> None:
    drawn = pixels(plot.draw_alignment(ENERGY, PATH, [], seconds))
    below = drawn[plot.TOP + plot.MAP_HEIGHT[0] + 3]
    ticks = np.flatnonzero((below == np.array(plot.INK)).all(axis=-1))
    assert 3 <= len(ticks) <= 45
    assert ticks[0] == plot.LEFT


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (500, 20)])
def test_any_size_can_be_drawn(shape: tuple[int, int]) -> None:
    image = plot.draw_alignment(np.zeros(shape), np.zeros((1, 2), dtype=int), [], 1.0, "title")
    low, high = plot.MAP_HEIGHT
    assert plot.TOP + low <= image.height - plot.BOTTOM <= plot.TOP + high


@pytest.mark.parametrize(
    ("energy", "path", "message"),
    [
        (np.zeros(3), np.zeros((1, 2)), r"\[3\] and \[1, 2\]"),
        (np.zeros((2, 0)), np.zeros((1, 2)), r"\[2, 0\]"),
        (np.zeros((2, 2)), np.zeros((1, 3)), r"\[1, 3\]"),
    ],
)
def test_shapes_that_do_not_fit(energy: Any, path: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plot.draw_alignment(energy, path, [], 1.0)


def test_saved_as_png(tmp_path: Path) -> None:
    image = plot.draw_alignment(ENERGY, PATH, [], 6.0)
    plot.save_plot(tmp_path / "a" / "song.png", image)
    with Image.open(tmp_path / "a" / "song.png") as read:
        assert (read.format, read.size) == ("PNG", image.size)
