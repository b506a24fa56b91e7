"""Which reaction each component of the page is wired to, and which components it may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context

from acestep.gradio_ui.interfaces import _drafts, _showing, _writing, form, service
from acestep.gradio_ui.interfaces.parts import Parts

_REMEMBER_LANGUAGE = """
(language, ...rest) => {
  document.documentElement.lang = language;
  document.cookie = `acestep_language=${language}; path=/; max-age=31536000; samesite=lax`;
  return [language, ...rest];
}
"""

_NOW: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# The line of jobs keeps the order; gradio's own queue need not hold anyone up.
_LONG: dict[str, Any] = {**_NOW, "concurrency_limit": None, "trigger_mode": "multiple"}
_TOLD = ("notice", "progress", "cancel", "songs", "service_status")


def wire(events: Any) -> None:
    """Connect the components to an `Events`, which imports this module and so is not named here."""
    _making(events)
    _service(events)
    _shapes(events)
    events.sources.wire(_NOW)
    _arrival(events)


def _making(events: Any) -> None:
    """What makes songs, and what is done with them."""
    pick, p = events.parts.pick, events.parts.made
    words, fields = p["page_language"], pick(*form.FIELDS)
    told = pick(*_TOLD)
    p["make"].click(events.make, [words, *fields], told, **_LONG)
    p["create"].click(events._create, [words, p["query"], *pick(*form.SIMPLE)], told, **_LONG)
    ideas = [*told, *pick(*_writing.WRITTEN, "before", "undo")]
    stood = pick(*_writing.WRITTEN)
    p["inspire"].click(events.inspire, [words, *stood], ideas, **_LONG)
    p["polish"].click(events.polish, [words, *fields], ideas, **_LONG)
    p["undo"].click(
        events._undo, [words, p["before"]], [*stood, *pick("before", "undo", "notice")], **_LONG
    )
    p["cancel"].click(events.cancel, None, None, **_LONG)
    p["progress"].click(events._cancel_one, None, None, **_LONG)
    p["songs"].click(
        events.song_action,
        [words],
        [*told, *pick(*form.FIELDS, "source_wave", "mode", "query", "clear_source")],
        **_LONG,
    )


def _service(events: Any) -> None:
    """What is loaded, and what follows from it."""
    pick, p = events.parts.pick, events.parts.made
    words, choice = p["page_language"], pick(*service.CHOICE)
    bounded = pick("duration", "batch", "task", "lora", "model_note")
    shape = pick(*_showing.SHAPE)
    changed = list(dict.fromkeys([*pick(*_TOLD), *bounded, *pick(*_showing.SHOWN)]))
    started = [words, p["with_planner"], *choice]
    p["start"].click(events.start, started, pick(*_TOLD), **_LONG).then(
        events._changed, [words, *shape], changed, **_NOW
    )
    p["stop"].click(events.stop, [words], pick(*_TOLD), **_LONG).then(
        events._changed, [words, *shape], changed, **_NOW
    )
    for name in ("device", "engine"):
        p[name].change(
            events.device,
            [words, *pick("device", "engine")],
            pick("notice", "service_status", "backend", "duration", "batch"),
            **_NOW,
        )
    p["model"].change(events.model, [words, *pick("model", "task")], p["task"], **_NOW)
    for name in ("backend", "quantize"):
        p[name].change(events.backend, [words, *choice], p["notice"], **_NOW)


def _shapes(events: Any) -> None:
    """What decides which controls there are, and what is kept of the form."""
    pick, p = events.parts.pick, events.parts.made
    words, shape = p["page_language"], pick(*_showing.SHAPE)
    shown = pick(*_showing.SHOWN)
    for name in ("task", "audio_format", "repaint_mode", "lora"):
        p[name].change(events._shape, [words, *shape], [*shown, p["notice"]], **_NOW)
    p["mode"].change(
        events._mode, [words, *pick("query", "prompt"), *shape],
        [*shown, p["query"]], **_NOW,
    )  # fmt: skip
    for number in range(len(form.EXAMPLES)):
        filled = [p["query"], *pick(*form.example_values(number))]
        p[f"example_{number}"].click(_filler(events.parts, number), None, filled, **_NOW)
    kept = pick(*_drafts.KEPT)
    gr.on(
        [part.change for part in kept if hasattr(part, "change")],
        None, kept, None, js=_drafts.SAVE_JS, trigger_mode="multiple", **_NOW,
    )  # fmt: skip


def _arrival(events: Any) -> None:
    """A page that is opened, and its language."""
    pick, p = events.parts.pick, events.parts.made
    words, shape = p["page_language"], pick(*_showing.SHAPE)
    shown = pick(*_showing.SHOWN)
    told_anew = pick(
        "title", "make_heading", "songs_heading", "banner", "model_note", "source_wave",
        "reference_name", "progress", "notice", "songs", "service_status", "cancel",
    )  # fmt: skip
    p["page_language"].change(
        events.speak,
        [words, *shape],
        list(dict.fromkeys([*events.parts.labelled, *told_anew, *shown])),
        js=_REMEMBER_LANGUAGE,
        **_NOW,
    )
    blocks = Context.root_block
    if blocks is None:
        return
    arrived = [*pick(*_TOLD), *pick("model", "device", "page_language", "model_note")]
    blocks.load(events.arrive, [words], arrived, **_LONG)
    read = list(dict.fromkeys([*pick(*_drafts.KEPT), *shown, *pick("source_wave", "clear_source")]))
    # Two inputs, of which the script gives the second; any component holds its place.
    blocks.load(events._read, [words, p["before"]], read, js=_drafts.READ_JS, **_NOW)


def _filler(parts: Parts, number: int) -> Callable[[], dict[Any, Any]]:
    def fill() -> dict[Any, Any]:
        values = form.example_values(number)
        return {
            parts["query"]: values["prompt"],
            **{parts[name]: value for name, value in values.items()},
        }

    return fill
