"""Which controls there are: those that the mode, the task and the model have a use for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from acestep.gradio_ui.engines import Abilities
from acestep.gradio_ui.interfaces import form
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.texts import Texts
from acestep.song.formats import FORMATS
from acestep.song.request import REPAINT_TASKS, SOURCE_TASKS

SHAPE = ("mode", "task", "audio_format", "repaint_mode", "lora", "before", "source_file", "source_song", "reference_file")  # fmt: skip
"""The components whose values decide which others there are."""

SHOWN = (
    "simple_box", "custom_box", "source_box", "helpers", "undo", "prompt", "lyrics", "duration",
    "batch", "seed", "instrumental", "music", "bpm", "key", "time_signature", "advanced", "range_row",
    "repaint_mode", "repaint_strength", "cover_strength", "track", "tracks", "clear_source",
    "thinking", "reference_file", "reference_name", "clear_reference", "lora_row", "lora", "lora_scale",
    "guidance", "adg", "bit_depth", "bitrate", "examples", "create", "make",
)  # fmt: skip
"""The components of which some are hidden."""


@dataclass(frozen=True)
class Shape:
    """What decides: the values of `SHAPE`."""

    mode: str = "simple"
    task: str = "text2music"
    audio_format: str = "flac"
    repaint_mode: str = "balanced"
    lora: str = ""
    before: str = ""
    source_file: str | None = None
    source_song: str = ""
    reference_file: str | None = None


def visible(shape: Shape, able: Abilities, writes: bool, most: int) -> dict[str, bool]:
    """For each name of `SHOWN` whether it is there.

    Args:
        shape: of the form.
        able: what the model can do.
        writes: whether a language model that can write is here.
        most: songs at once.
    """
    simple, task = shape.mode == "simple", "text2music" if shape.mode == "simple" else shape.task
    made = FORMATS.get(shape.audio_format)
    song, sung = task == "text2music", task not in (form.ALIGN, "extract")
    repainted = task in REPAINT_TASKS
    return {
        "simple_box": simple,
        "custom_box": not simple,
        "examples": simple or song,
        "source_box": task in (*SOURCE_TASKS, form.ALIGN),
        "clear_source": bool(shape.source_file or shape.source_song),
        "helpers": song,
        "undo": bool(shape.before),
        "prompt": task != form.ALIGN,
        "lyrics": task != "extract",
        "duration": song,
        "batch": most > 1 and task != form.ALIGN,
        "seed": task != form.ALIGN,
        "instrumental": (writes and not able.toy) if simple else sung,
        "music": not simple and task != "extract",
        **dict.fromkeys(("bpm", "key", "time_signature"), sung),
        "advanced": not simple and task != form.ALIGN,
        "range_row": repainted,
        "repaint_mode": repainted,
        "repaint_strength": repainted and shape.repaint_mode == "balanced",
        "cover_strength": task == "cover",
        "track": task in ("extract", "lego"),
        "tracks": task == "complete",
        "thinking": song,
        **dict.fromkeys(("reference_file", "reference_name"), sung),
        "clear_reference": sung and bool(shape.reference_file),
        **dict.fromkeys(("lora_row", "lora"), bool(able.adapters)),
        "lora_scale": bool(able.adapters and shape.lora),
        **dict.fromkeys(("guidance", "adg"), able.guided),
        "bit_depth": made is not None and len(made.subtypes) > 1,
        "bitrate": made is not None and bool(made.rates),
        "create": simple,
        "make": not simple,
    }


def updates(parts: Parts, words: Texts, shape: Shape, shown: dict[str, bool]) -> dict[Any, Any]:
    """What to tell the components."""
    changed: dict[Any, Any] = {parts[name]: gr.update(visible=shown[name]) for name in SHOWN}
    key = "make.align" if shape.task == form.ALIGN else "make.label"
    changed[parts["make"]] = gr.update(visible=shown["make"], value=words(key))
    return changed
