"""The form: what the song is to be, with the rarer settings folded away."""

from __future__ import annotations

from typing import Any

import gradio as gr

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.errors import RequestError
from acestep.gpu_config import MAX_DURATION
from acestep.gradio_ui.engines import limits_of
from acestep.gradio_ui.interfaces import sources
from acestep.gradio_ui.interfaces.parts import Choices, Parts, open_or, same_words, translated
from acestep.gradio_ui.studio import Studio
from acestep.gradio_ui.uploads import EXTENSIONS
from acestep.song.formats import BIT_DEPTHS, FORMATS
from acestep.song.loudness import RANGE
from acestep.song.request import INFER_METHODS, LANGUAGES, REPAINT_MODES, TIME_SIGNATURES

FIELDS = (
    "prompt", "lyrics", "instrumental", "language", "bpm", "key", "time_signature", "duration",
    "seed", "batch", "task", "source_file", "source_song", "repaint_start", "repaint_end",
    "repaint_mode", "repaint_strength", "cover_strength", "track", "reference_file", "thinking",
    "steps", "guidance", "shift", "adg", "timesteps", "method", "audio_format", "bit_depth",
    "bitrate", "loudness",
)  # fmt: skip
"""The components that make a `SongRequest`, under its fields' names."""

EXAMPLES = (
    ("warm piano, rain, without drums", "", 75),
    ("happy synth lead with drums, fast", "[verse]\nCity lights are calling me\n[chorus]\nWe run, we fly, we shine", 125),
    ("peaceful acoustic guitar, folk, in C major", "[verse]\nThe river took the road away\nand left us with the sky", 88),
    ("dark church organ, a waltz, slow", "", 79),
)  # fmt: skip
"""Prompt, lyrics and tempo, in words that the built-in checkpoint knows too."""

_NOTES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
KEYS = tuple(f"{note} {mode}" for mode in ("major", "minor") for note in _NOTES)
_EXAMPLE_SECONDS = 10

# The page's own script draws the range and says so with an event.
RANGE_JS = """
element.addEventListener('acestep-range', (event) => trigger('select', event.detail));
"""


def build(parts: Parts, studio: Studio) -> None:
    """Make the form's components."""
    _words(parts, studio)
    _numbers(parts, studio)
    _music(parts)
    _source(parts, studio)
    _advanced(parts)


def bounds(device: str, with_lm: bool) -> tuple[float, int]:
    """Longest song in seconds and most songs at once, on a device or, if absent, anywhere."""
    try:
        tier = limits_of(device)
    except RequestError:
        return MAX_DURATION, 1
    return tier.max_duration(with_lm), tier.max_batch_size(with_lm)


def tasks(studio: Studio, model: str) -> list[str]:
    """What the checkpoint can do, in the order of the list of all."""
    able = studio.engines.tasks(model)
    return [task for task in ALL_TASKS if task in able]


def task_choices(able: list[str]) -> Choices:
    """The tasks in words."""
    return translated("task", able)


def _words(parts: Parts, studio: Studio) -> None:
    limits = studio.limits
    with gr.Row(elem_classes="idea"):
        parts.add("query", gr.Textbox, max_length=500, scale=4, lines=1)
        parts.add("inspire", gr.Button, scale=1, min_width=120)
    parts.add("prompt", gr.Textbox, lines=2, max_lines=6, max_length=limits.prompt_chars)
    parts.add("lyrics", gr.Textbox, lines=6, max_lines=16, max_length=limits.lyrics_chars)
    with gr.Row(elem_classes="switches"):
        parts.add("instrumental", gr.Checkbox)
        parts.add("thinking", gr.Checkbox)
        parts.add("polish", gr.Button, min_width=160)


def _numbers(parts: Parts, studio: Studio) -> None:
    longest, most = bounds(studio.choice.device, False)
    with gr.Row():
        parts.add("duration", gr.Slider, minimum=1, maximum=longest, step=1, value=30)
        parts.add(
            "batch",
            gr.Slider,
            minimum=1,
            maximum=max(most, 2),
            step=1,
            value=1,
            interactive=most > 1,
        )
        parts.add("seed", gr.Number, value=-1, precision=0, min_width=140)


def _music(parts: Parts) -> None:
    with parts.add("music", gr.Accordion, open=False), gr.Row():
        parts.add("bpm", gr.Number, value=0, precision=0, minimum=0, maximum=300, min_width=120)
        parts.add("key", gr.Dropdown, choices=open_or(KEYS), value="", min_width=120)
        parts.add("time_signature", gr.Dropdown, choices=open_or(TIME_SIGNATURES), value="", min_width=120)  # fmt: skip
        parts.add("language", gr.Dropdown, choices=same_words(LANGUAGES), value="unknown", min_width=120)  # fmt: skip


def _source(parts: Parts, studio: Studio) -> None:
    able = task_choices(tasks(studio, studio.choice.model))
    with parts.add("source", gr.Accordion, open=False):
        parts.add("task", gr.Radio, choices=able, value="text2music")
        with gr.Row():
            parts.add("source_file", gr.File, file_types=list(EXTENSIONS), type="filepath", height=160)  # fmt: skip
            parts.add("reference_file", gr.File, file_types=list(EXTENSIONS), type="filepath", height=160)  # fmt: skip
        parts.add("source_song", gr.Textbox, visible="hidden")
        parts.made["source_wave"] = gr.HTML(
            sources.none(parts.words), elem_id="acestep-source-wave", js_on_load=RANGE_JS
        )
        with gr.Row():
            parts.add("repaint_start", gr.Number, value=0, min_width=120)
            parts.add("repaint_end", gr.Number, value=0, min_width=120)
            parts.add("cover_strength", gr.Slider, minimum=0, maximum=1, step=0.05, value=1)
            parts.add("track", gr.Textbox, max_length=40, lines=1, min_width=120)
        with gr.Row():
            modes = translated("repaint_mode", REPAINT_MODES)
            parts.add("repaint_mode", gr.Radio, choices=modes, value="balanced")
            parts.add("repaint_strength", gr.Slider, minimum=0, maximum=1, step=0.05, value=0.5)


def _advanced(parts: Parts) -> None:
    with parts.add("advanced", gr.Accordion, open=False):
        with gr.Row():
            # Nought takes the checkpoint's own, see `song.defaults`.
            parts.add("steps", gr.Slider, minimum=0, maximum=100, step=1, value=0)
            parts.add("guidance", gr.Slider, minimum=0, maximum=20, step=0.5, value=0)
            parts.add("shift", gr.Slider, minimum=0, maximum=5, step=0.1, value=0)
        with gr.Row():
            parts.add("timesteps", gr.Textbox, max_length=400, lines=1, scale=3)
            parts.add("adg", gr.Checkbox, scale=1)
        with gr.Row():
            parts.add("method", gr.Radio, choices=translated("method", INFER_METHODS), value="ode")
            parts.add("audio_format", gr.Radio, choices=same_words(tuple(FORMATS)), value="flac")
        with gr.Row():
            parts.add(
                "bit_depth", gr.Dropdown, choices=open_or(tuple(map(str, BIT_DEPTHS))), value=""
            )
            parts.add("bitrate", gr.Number, value=0, precision=0, minimum=0, maximum=510)
            parts.add("loudness", gr.Number, value=0, minimum=RANGE[0], maximum=0)


def example_values(number: int) -> dict[str, Any]:
    """The form values of an example."""
    prompt, lyrics, bpm = EXAMPLES[number]
    return {
        "prompt": prompt,
        "lyrics": lyrics,
        "bpm": bpm,
        "duration": _EXAMPLE_SECONDS,
        "instrumental": not lyrics,
    }
