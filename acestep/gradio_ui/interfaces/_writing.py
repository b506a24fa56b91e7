"""The planner's words in the form, and the person's own kept beside them until they want them back."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from acestep.errors import RequestError
from acestep.gradio_ui.interfaces import form, results
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.jobs import Job
from acestep.gradio_ui.song_request import SongRequest
from acestep.gradio_ui.texts import Texts

WRITTEN = (
    "prompt", "lyrics", "bpm", "key", "time_signature", "language", "duration", "instrumental",
)  # fmt: skip
"""What the planner writes into the form."""

_MOST_CHARS = 200_000

Update = dict[Any, Any]


def write(parts: Parts, words: Texts, job: Job, stood: dict[str, Any], toy: bool) -> Update:
    """What the planner wrote, as form values, and the way back; what it left out stays.

    Args:
        parts: the page's components.
        words: of the visitor.
        job: that has ended, `inspire` or `polish`.
        stood: what stood in the form.
        toy: whether the planner is the built-in one.
    """
    made = job.result
    values = {
        "prompt": made.caption,
        "lyrics": made.lyrics,
        "bpm": made.bpm,
        "key": made.keyscale if made.keyscale in form.KEYS else None,
        "time_signature": made.timesignature,
        "language": made.language,
        "duration": made.duration,
        "instrumental": made.instrumental,
    }
    told = words(f"done.{job.kind}") + " " + words("done.kept")
    if toy:
        told += " " + words("planner.toy")
    return {
        **{parts[name]: value for name, value in values.items() if value not in (None, "")},
        parts["before"]: json.dumps({name: stood[name] for name in WRITTEN}),
        parts["undo"]: gr.update(visible=True),
        parts["notice"]: results.notice(words, told),
    }


def undo(parts: Parts, words: Texts, before: str) -> Update:
    """The person's own words are back."""
    return {
        **{parts[name]: value for name, value in _kept(before).items()},
        parts["before"]: "",
        parts["undo"]: gr.update(visible=False),
        parts["notice"]: results.notice(words, words("done.undo")),
    }


def _kept(before: str) -> dict[str, Any]:
    """What stood in the form; it went through the browser, and so may be anything."""
    try:
        values = json.loads(before) if len(before) <= _MOST_CHARS else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    kept = {}
    for name in WRITTEN:
        try:
            SongRequest.of({name: values.get(name)})
        except RequestError:
            continue
        kept[name] = values.get(name)
    return kept
