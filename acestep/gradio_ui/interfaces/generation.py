"""The page's one section: service panel, form, progress and songs, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from acestep.gradio_ui.engines import Engines
from acestep.gradio_ui.interfaces import _showing, form, results, service
from acestep.gradio_ui.interfaces.events import Events
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.settings import PageOptions
from acestep.gradio_ui.studio import Studio, data_folder, prepare
from acestep.gradio_ui.texts import LANGUAGES, texts

if TYPE_CHECKING:
    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler

_CANCEL_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-cancel]');
  if (button) trigger('click', {id: button.dataset.cancel});
});
"""

# One listener for all buttons of all songs; a song's deletion is asked about first.
_SONG_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-action]');
  if (!button) return;
  const {action, id, sure} = button.dataset;
  if (sure && !window.confirm(sure)) return;
  if (action === 'rename') window.acestepRename(button, (title) => trigger('click', {action, id, title}));
  else trigger('click', {action, id});
});
"""


def create_generation_section(
    dit_handler: AceStepHandler | None,
    llm_handler: LLMHandler | None,
    init_params: Mapping[str, Any] | None = None,
    language: str = "en",
) -> dict[str, Any]:
    """Build the section and connect it; called inside a `gr.Blocks`.

    Args:
        dit_handler: makes the music, loaded or not; None makes one when it is needed.
        llm_handler: plans it; likewise.
        init_params: options of the command line by name, and under `studio` a `Studio` to
            use in place of a new one.
        language: the page's first language, one of `texts.LANGUAGES`.

    Returns:
        The components by name, for example `device`, `backend`, `prompt`, `make`, `songs`.
    """
    given = dict(init_params or {})
    studio = given.pop("studio", None) or _studio(dit_handler, llm_handler, given)
    words = texts(language)
    parts = Parts(words)
    _header(parts, studio)
    with gr.Row(elem_classes="studio"):
        with gr.Column(scale=5, min_width=300, elem_classes="form", elem_id="acestep-form"):
            parts.made["make_heading"] = gr.HTML(results.heading(words), elem_classes="unseen")
            toy = studio.engines.abilities(studio.choice.model).toy
            note = results.model_note(words, toy)
            parts.made["model_note"] = gr.HTML(note, elem_id="acestep-model-note")
            form.build(parts, studio)
            service.build(parts, studio)
            _go(parts)
        with gr.Column(scale=7, min_width=300, elem_classes="results"):
            _songs(parts)
    _hide(parts, studio)
    Events(parts, studio).wire()
    return parts.made


def _studio(dit: AceStepHandler | None, llm: LLMHandler | None, given: Mapping[str, Any]) -> Studio:
    options = PageOptions.of(given)
    folder = data_folder(options)
    prepare(folder)
    return Studio(options, Engines(dit, llm, options.checkpoint), folder)


def _header(parts: Parts, studio: Studio) -> None:
    with gr.Row(elem_classes="top"):
        parts.made["title"] = gr.HTML(results.title(parts.words), elem_id="acestep-title")
        parts.add(
            "page_language",
            gr.Dropdown,
            choices=lambda words: [(name, code) for code, name in LANGUAGES.items()],
            value=parts.words.language,
            container=False,
            show_label=False,
            filterable=False,
            scale=0,
            min_width=130,
        )
    warning = results.banner(parts.words, studio.options.open_to_strangers)
    parts.made["banner"] = gr.HTML(warning, elem_id="acestep-banner")


def _go(parts: Parts) -> None:
    """The button, and what comes of it, where the hand is."""
    with gr.Column(elem_classes="go"):
        parts.made["notice"] = gr.HTML(results.notice(parts.words, ""), elem_id="acestep-notice")
        parts.made["progress"] = gr.HTML("", elem_id="acestep-progress", js_on_load=_CANCEL_JS)
        parts.add("cancel", gr.Button, variant="stop", size="sm", visible=False)
        parts.add("create", gr.Button, variant="primary", size="lg")
        parts.add("make", gr.Button, variant="primary", size="lg", visible=False)


def _songs(parts: Parts) -> None:
    words = parts.words
    with gr.Row(elem_classes="library"):
        parts.made["songs_heading"] = gr.HTML(results.songs_heading(words))
        parts.add("search", gr.Textbox, lines=1, max_lines=1, container=False, show_label=False, interactive=True, min_width=120, scale=2)  # fmt: skip
        parts.add("favourites", gr.Checkbox, container=False, interactive=True, min_width=120, scale=1)  # fmt: skip
    parts.made["songs"] = gr.HTML(
        results.songs(words, []), elem_id="acestep-songs", js_on_load=_SONG_JS
    )


def _hide(parts: Parts, studio: Studio) -> None:
    """At first there is what the first mode, task and model have a use for."""
    engines = studio.engines
    able, most = engines.abilities(studio.choice.model), form.bounds(studio.choice.device, False)[1]
    shown = _showing.visible(_showing.Shape(), able, engines.real_planner, most)
    for name, there in shown.items():
        parts[name].visible = there
