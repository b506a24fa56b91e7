"""The page's one section: service panel, form, progress and songs, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from acestep.gradio_ui.engines import Engines
from acestep.gradio_ui.interfaces import form, results, service
from acestep.gradio_ui.interfaces.events import Events
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.settings import PageOptions
from acestep.gradio_ui.studio import Studio, data_folder, prepare
from acestep.gradio_ui.texts import LANGUAGES, texts

if TYPE_CHECKING:
    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler

# One listener for all buttons of all songs; a song's deletion is asked about first.
_SONG_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-action]');
  if (!button) return;
  const {action, id, sure} = button.dataset;
  if (sure && !window.confirm(sure)) return;
  trigger('click', {action, id});
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
    _header(parts)
    service.build(parts, studio)
    with gr.Row(elem_classes="studio"):
        with gr.Column(scale=6, min_width=340, elem_classes="form"):
            parts.made["make_heading"] = gr.HTML(results.heading(words))
            _examples(parts)
            form.build(parts, studio)
        with gr.Column(scale=5, min_width=320, elem_classes="results"):
            _results(parts)
    Events(parts, studio).wire()
    return parts.made


def _studio(dit: AceStepHandler | None, llm: LLMHandler | None, given: Mapping[str, Any]) -> Studio:
    options = PageOptions.of(given)
    folder = data_folder(options)
    prepare(folder)
    return Studio(options, Engines(dit, llm, options.checkpoint), folder)


def _header(parts: Parts) -> None:
    with gr.Row(elem_classes="top"):
        parts.made["title"] = gr.HTML(results.title(parts.words), elem_id="acestep-title")
        parts.add(
            "page_language",
            gr.Dropdown,
            choices=lambda words: [(name, code) for code, name in LANGUAGES.items()],
            value=parts.words.language,
            scale=0,
            min_width=150,
        )


def _examples(parts: Parts) -> None:
    with gr.Row(elem_classes="examples"):
        for number, (prompt, _, _) in enumerate(form.EXAMPLES):
            parts.made[f"example_{number}"] = gr.Button(prompt, size="sm", min_width=120)


def _results(parts: Parts) -> None:
    words = parts.words
    with gr.Row(elem_classes="go"):
        parts.add("make", gr.Button, variant="primary", size="lg", scale=3)
        parts.add("cancel", gr.Button, variant="stop", size="lg", scale=1, interactive=False, min_width=110)  # fmt: skip
    parts.made["notice"] = gr.HTML(results.notice(words, ""), elem_id="acestep-notice")
    parts.made["progress"] = gr.HTML("", elem_id="acestep-progress")
    parts.made["songs"] = gr.HTML(
        results.songs(words, []), elem_id="acestep-songs", js_on_load=_SONG_JS
    )
