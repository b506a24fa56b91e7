"""A picture of an alignment: the attention map, the path through it and the lyric lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from acestep.alignment.types import SentenceTimestamp
from acestep.errors import RequestError

MAP_WIDTH = 1200
MAP_HEIGHT = (240, 1600)
LEFT, RIGHT, TOP, BOTTOM = 320, 24, 48, 44
LINE_HEIGHT = 16
BACKGROUND, INK, PATH = (255, 255, 255), (40, 40, 40), (226, 60, 60)

# Dark to light through blue and green, evenly spaced; readable in grey as well.
_COLOURS = np.array(
    [[13, 8, 60], [38, 60, 130], [33, 120, 140], [70, 180, 110], [190, 220, 70], [255, 250, 200]]
)
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120)
_MOST_TICKS = 14


def draw_alignment(
    energy: NDArray[Any],
    path: NDArray[Any],
    sentences: Sequence[SentenceTimestamp],
    seconds: float,
    title: str = "",
) -> Image.Image:
    """Draw tokens downwards over time to the right, with a line of lyrics at its tokens.

    Pillow's own font has Latin letters only; others show as boxes.

    Args:
        energy: `[tokens, frames]` in [0, 1].
        path: `[steps, 2]`, token and frame.
        sentences: the lyric lines, each beginning at its `row`.
        seconds: length of the song.
        title: written above.

    Raises:
        RequestError: the energy is no matrix, or the path is not made of pairs.
    """
    if energy.ndim != 2 or energy.size == 0 or path.ndim != 2 or path.shape[1] != 2:
        raise RequestError(
            f"a picture needs energy of shape [tokens, frames] and a path of shape [steps, 2], "
            f"got {list(energy.shape)} and {list(path.shape)}"
        )
    tokens, frames = energy.shape
    low, high = MAP_HEIGHT
    height = min(max(tokens * 6, len(sentences) * LINE_HEIGHT, low), high)
    image = Image.new("RGB", (LEFT + MAP_WIDTH + RIGHT, TOP + height + BOTTOM), BACKGROUND)
    image.paste(_heat(energy).resize((MAP_WIDTH, height), Image.Resampling.BOX), (LEFT, TOP))
    pen = ImageDraw.Draw(image)
    pen.text((LEFT, 16), title, fill=INK, font=ImageFont.load_default(18))
    across, down = MAP_WIDTH / frames, height / tokens
    line = [(LEFT + (j + 0.5) * across, TOP + (i + 0.5) * down) for i, j in path.tolist()]
    pen.line(line if len(line) > 1 else line * 2, fill=PATH, width=2)
    _label_lines(pen, sentences, down)
    _label_time(pen, seconds, TOP + height)
    return image


def save_plot(path: Path, image: Image.Image, *, overwrite: bool = True) -> None:
    """Write a PNG whole, or not at all.

    Raises:
        RequestError: it cannot be written there, or a file is there and is not to be replaced.
    """
    from acestep.song.audio_files import replacing

    with replacing(path, overwrite=overwrite) as part:
        image.save(part, format="PNG")


def _heat(energy: NDArray[Any]) -> Image.Image:
    """One pixel a cell, in `_COLOURS`."""
    at = np.clip(energy, 0, 1) * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    channels = [np.interp(at, stops, _COLOURS[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _label_lines(
    pen: ImageDraw.ImageDraw, sentences: Sequence[SentenceTimestamp], down: float
) -> None:
    """The words of each line at its first token, as far as they do not cover each other."""
    font = ImageFont.load_default(12)
    free = float(TOP)
    for sentence in sentences:
        top = TOP + sentence.row * down
        pen.line([(LEFT - 8, top), (LEFT + MAP_WIDTH, top)], fill=(150, 150, 150), width=1)
        if top >= free:
            text = f"{sentence.start:7.2f}  {sentence.text}"
            while pen.textlength(text, font=font) > LEFT - 24:
                text = text[:-2] + "…"
            pen.text((12, top), text, fill=INK, font=font)
            free = top + LINE_HEIGHT


def _label_time(pen: ImageDraw.ImageDraw, seconds: float, bottom: float) -> None:
    font = ImageFont.load_default(12)
    step = next((tick for tick in _TICKS if seconds / tick <= _MOST_TICKS), _TICKS[-1])
    for number in range(int(seconds / step) + 1):
        x = LEFT + MAP_WIDTH * number * step / seconds
        pen.line([(x, bottom), (x, bottom + 6)], fill=INK, width=1)
        pen.text((x, bottom + 10), f"{number * step:g} s", fill=INK, font=font, anchor="ma")
