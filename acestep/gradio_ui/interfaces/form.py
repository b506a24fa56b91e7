"""The form: what the song is to be, the button close to it, the rarer settings folded away."""

from __future__ import annotations

from typing import Any

import gradio as gr

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.errors import RequestError
from acestep.gpu_config import MAX_DURATION
from acestep.gradio_ui import downloads
from acestep.gradio_ui.engines import limits_of
from acestep.gradio_ui.interfaces import sources
from acestep.gradio_ui.interfaces.parts import Choices, Parts, open_or, same_words, translated
from acestep.gradio_ui.song_request import MAX_SCALE
from acestep.gradio_ui.studio import Studio
from acestep.gradio_ui.texts import Texts
from acestep.gradio_ui.uploads import EXTENSIONS
from acestep.song.formats import BIT_DEPTHS
from acestep.song.loudness import RANGE
from acestep.song.request import (
    INFER_METHODS,
    LANGUAGES,
    REPAINT_MODES,
    TIME_SIGNATURES,
    UNKNOWN_LANGUAGE,
)

FIELDS = (
    "prompt", "lyrics", "instrumental", "language", "bpm", "key", "time_signature", "duration",
    "seed", "batch", "task", "source_file", "source_song", "repaint_start", "repaint_end",
    "repaint_mode", "repaint_strength", "cover_strength", "track", "tracks", "reference_file",
    "thinking", "steps", "guidance", "shift", "adg", "timesteps", "method", "audio_format",
    "bit_depth", "bitrate", "loudness", "lora", "lora_scale",
)  # fmt: skip
"""The components that make a `SongRequest`, under its fields' names."""

SIMPLE = ("instrumental", "duration", "batch", "seed", "audio_format", "bit_depth", "bitrate", "loudness")  # fmt: skip
"""Those of them that count in the simple mode, beside the idea."""

MODES = ("simple", "custom")
ALIGN = "align"
"""What is no task of a model: the lyrics of a recording are timed."""

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
    parts.add("mode", gr.Radio, choices=translated("mode", MODES), value="simple", container=False, show_label=False)  # fmt: skip
    with gr.Column(elem_classes="box") as parts.made["simple_box"]:
        parts.add("query", gr.Textbox, max_length=studio.limits.prompt_chars, lines=3, max_lines=8)
    with gr.Column(elem_classes="box", visible=False) as parts.made["custom_box"]:
        _source(parts, studio)
        _words(parts, studio)
    with gr.Row(elem_classes="examples") as parts.made["examples"]:
        for number in range(len(EXAMPLES)):
            parts.add(f"example_{number}", gr.Button, size="sm", min_width=60)
    _numbers(parts, studio)
    _music(parts)
    _advanced(parts, studio)


def bounds(device: str, with_lm: bool) -> tuple[float, int]:
    """Longest song in seconds and most songs at once, on a device or, if absent, anywhere."""
    try:
        tier = limits_of(device)
    except RequestError:
        return MAX_DURATION, 1
    return tier.max_duration(with_lm), tier.max_batch_size(with_lm)


def tasks(studio: Studio, model: str) -> list[str]:
    """What the checkpoint can do, in the order of the list of all, and timing lyrics."""
    able = studio.engines.tasks(model)
    return [*(task for task in ALL_TASKS if task in able), ALIGN]


def task_choices(able: list[str]) -> Choices:
    """The tasks in words."""
    return translated("task", able)


def _words(parts: Parts, studio: Studio) -> None:
    limits = studio.limits
    parts.add("prompt", gr.Textbox, lines=2, max_lines=8, max_length=limits.prompt_chars)
    with gr.Row(elem_classes="helpers") as parts.made["helpers"]:
        parts.add("inspire", gr.Button, size="sm", min_width=60)
        parts.add("polish", gr.Button, size="sm", min_width=60)
        parts.add("undo", gr.Button, size="sm", min_width=60, visible=False)
    # What stood in the form before the planner wrote into it.
    parts.add("before", gr.Textbox, visible="hidden")
    parts.add("lyrics", gr.Textbox, lines=4, max_lines=16, max_length=limits.lyrics_chars)


def _numbers(parts: Parts, studio: Studio) -> None:
    longest, most = bounds(studio.choice.device, False)
    with gr.Row(elem_classes="numbers"):
        parts.add("duration", gr.Number, minimum=0.5, maximum=longest, step=1, value=30, min_width=80)  # fmt: skip
        parts.add("batch", gr.Number, minimum=1, maximum=most, step=1, value=1, precision=0, min_width=80)  # fmt: skip
        parts.add("seed", gr.Number, value=-1, minimum=-1, precision=0, min_width=100)
    parts.add("instrumental", gr.Checkbox, container=False, visible=False)


def _music(parts: Parts) -> None:
    with parts.add("music", gr.Accordion, open=False, visible=False), gr.Row():
        parts.add("bpm", gr.Number, value=0, precision=0, minimum=0, maximum=300, min_width=120)
        parts.add("key", gr.Dropdown, choices=open_or(KEYS), value="", min_width=120)
        parts.add("time_signature", gr.Dropdown, choices=open_or(TIME_SIGNATURES), value="", min_width=120)  # fmt: skip
        parts.add("language", gr.Dropdown, choices=_languages, value=UNKNOWN_LANGUAGE, min_width=120)  # fmt: skip


def _languages(words: Texts) -> list[tuple[str, str]]:
    named = [(code, code) for code in LANGUAGES if code != UNKNOWN_LANGUAGE]
    return [(words("choice.open"), UNKNOWN_LANGUAGE), *named]


def _source(parts: Parts, studio: Studio) -> None:
    able = task_choices(tasks(studio, studio.choice.model))
    parts.add("task", gr.Dropdown, choices=able, value="text2music", filterable=False)
    with gr.Column(elem_classes="source", visible=False) as parts.made["source_box"]:
        with gr.Row(elem_classes="helpers"):
            parts.add("source_file", gr.UploadButton, file_types=list(EXTENSIONS), type="filepath", size="sm", min_width=60)  # fmt: skip
            parts.add("clear_source", gr.Button, size="sm", min_width=60, visible=False)
        parts.add("source_song", gr.Textbox, visible="hidden")
        parts.made["source_wave"] = gr.HTML(
            sources.none(parts.words), elem_id="acestep-source-wave", js_on_load=RANGE_JS
        )
        with gr.Row() as parts.made["range_row"]:
            parts.add("repaint_start", gr.Number, value=0, min_width=120)
            parts.add("repaint_end", gr.Number, value=0, min_width=120)
        modes = translated("repaint_mode", REPAINT_MODES)
        with gr.Row():
            parts.add("repaint_mode", gr.Dropdown, choices=modes, value="balanced", filterable=False, min_width=120)  # fmt: skip
            parts.add("repaint_strength", gr.Slider, minimum=0, maximum=1, step=0.05, value=0.5, buttons=[], min_width=120)  # fmt: skip
        parts.add("cover_strength", gr.Slider, minimum=0, maximum=1, step=0.05, value=1, buttons=[])
        parts.add("track", gr.Textbox, max_length=40, lines=1)
        parts.add("tracks", gr.Textbox, max_length=200, lines=1)


def _advanced(parts: Parts, studio: Studio) -> None:
    with parts.add("advanced", gr.Accordion, open=False, visible=False):
        parts.add("thinking", gr.Checkbox)
        with gr.Row() as parts.made["lora_row"]:
            parts.add("lora", gr.Dropdown, choices=adapters(studio), value="", min_width=120)
            parts.add("lora_scale", gr.Number, value=1, minimum=0, maximum=MAX_SCALE, step=0.1, min_width=120)  # fmt: skip
        parts.made["reference_name"] = gr.HTML(sources.reference(parts.words, None))
        with gr.Row(elem_classes="helpers"):
            parts.add("reference_file", gr.UploadButton, file_types=list(EXTENSIONS), type="filepath", size="sm", min_width=60)  # fmt: skip
            parts.add("clear_reference", gr.Button, size="sm", min_width=60, visible=False)
        with gr.Row():
            # Nought takes the checkpoint's own, see `song.defaults`.
            parts.add("steps", gr.Number, minimum=0, maximum=100, precision=0, value=0, min_width=120)  # fmt: skip
            parts.add("shift", gr.Number, minimum=0, maximum=5, step=0.1, value=0, min_width=120)
            parts.add("guidance", gr.Number, minimum=0, maximum=20, step=0.5, value=0, min_width=120)  # fmt: skip
        parts.add("adg", gr.Checkbox)
        parts.add("timesteps", gr.Textbox, max_length=400, lines=1)
        parts.add("method", gr.Radio, choices=translated("method", INFER_METHODS), value="ode")
        with gr.Row():
            parts.add("audio_format", gr.Dropdown, choices=same_words(downloads.kinds()), value="flac", filterable=False, min_width=120)  # fmt: skip
            parts.add("bit_depth", gr.Dropdown, choices=open_or(tuple(map(str, BIT_DEPTHS))), value="", min_width=120)  # fmt: skip
            parts.add("bitrate", gr.Number, value=0, precision=0, minimum=0, maximum=510, min_width=120)  # fmt: skip
            parts.add("loudness", gr.Number, value=0, minimum=RANGE[0], maximum=0, min_width=120)


def adapters(studio: Studio) -> Choices:
    """The adapters that are here."""
    named = studio.engines.abilities(studio.choice.model).adapters
    return lambda words: [(words("lora.none"), ""), *((name, name) for name in named)]


def example_values(number: int) -> dict[str, Any]:
    """The form values of an example; what it does not name is left open."""
    prompt, lyrics, bpm = EXAMPLES[number]
    return {
        "prompt": prompt,
        "lyrics": lyrics,
        "bpm": bpm,
        "duration": _EXAMPLE_SECONDS,
        "instrumental": not lyrics,
    }
