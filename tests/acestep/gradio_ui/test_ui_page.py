"""The page's reactions, called as gradio calls them: what each shows, and what it never does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile

from acestep.gradio_ui.interfaces import form, results
from acestep.gradio_ui.interfaces.generation import create_generation_section
from acestep.gradio_ui.jobs import Job
from acestep.gradio_ui.store import StoredSong
from acestep.gradio_ui.studio import Studio
from acestep.gradio_ui.texts import texts
from acestep.handler import AceStepHandler

pytestmark = pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*")

HTML = "<script>alert('x')</script>"


class Page:
    """A page without a server, and a visitor who uses it."""

    def __init__(self, studio: Studio, language: str = "en") -> None:
        self.studio = studio

        async def build() -> dict[str, Any]:
            # Within a loop: without one, gradio makes loops that it never closes.
            with gr.Blocks(analytics_enabled=False) as self.blocks:
                return create_generation_section(None, None, {"studio": studio}, language)

        self.parts = asyncio.run(build())
        self.names = {part: name for name, part in self.parts.items()}
        self.request = SimpleNamespace(
            cookies={"acestep_visitor": "anna"}, client=None, session_hash="one"
        )

    def use(self, name: str, event: str, data: Any = None, **values: Any) -> dict[str, Any]:
        """Press or change a component; the last value of each that was updated."""
        part = self.parts[name]
        (found,) = (fn for fn in self.blocks.fns.values() if (part._id, event) in fn.targets)
        given = [values.get(self.names[p], p.value) for p in found.inputs]
        return self.call(found, given, data)

    def open(self) -> dict[str, Any]:
        """Load the page."""
        (found,) = (fn for fn in self.blocks.fns.values() if fn.targets[0][1] == "load")
        return self.call(found, ["en"], None)

    def call(self, found: Any, given: list[Any], data: Any) -> dict[str, Any]:
        event = SimpleNamespace(target=None, _data=data)
        for place, name in enumerate(found.fn.__annotations__):
            if name in ("request", "event"):
                given.insert(place, self.request if name == "request" else event)

        async def run() -> Any:
            made = found.fn(*given)
            if not hasattr(made, "__anext__"):
                return await made if hasattr(made, "__await__") else made
            seen: dict[Any, Any] = {}
            async for update in made:
                seen |= update
            return seen

        made = asyncio.run(run())
        if isinstance(made, dict) and "__type__" not in made:
            return {self.names[part]: value for part, value in made.items()}
        if isinstance(made, tuple):
            pairs = zip(found.outputs, made, strict=True)
            return {self.names[part]: value for part, value in pairs}
        return {self.names[part]: made for part in found.outputs[:1]}


@pytest.fixture
def page(studio: Studio) -> Page:
    """A visitor on a page."""
    return Page(studio)


def test_make_again_use_and_delete(page: Page) -> None:
    values = {"prompt": f"piano {HTML}", "lyrics": "[verse]\nla la", "duration": 1, "steps": 2}
    seen = page.use("make", "click", **values, seed=4)
    assert "Done. New songs: 1." in seen["notice"]
    assert HTML not in seen["songs"]
    assert "&lt;script&gt;" in seen["songs"]
    assert 'class="tag"' in seen["songs"]
    assert seen["cancel"]["interactive"] is False
    assert page.open()["songs"] == seen["songs"]
    (owner,) = (path.name for path in page.studio.store.root.iterdir())
    (song,) = page.studio.store.list(owner)
    again = page.use("songs", "click", {"action": "again", "id": song.id})
    assert (again["seed"], again["lyrics"], again["duration"]) == (4, "[verse]\nla la", 1)
    used = page.use("songs", "click", {"action": "use", "id": song.id})
    assert (used["source_song"], used["task"]) == (song.id, "repaint")
    assert 'class="wave range"' in used["source_wave"]
    assert page.use("songs", "click", {"action": "use", "id": "../../etc"}).keys() == {"songs"}
    assert page.use("songs", "click", None).keys() == {"songs"}
    gone = page.use("songs", "click", {"action": "delete", "id": song.id})
    assert "Deleted" in gone["notice"]
    assert page.studio.store.list(owner) == []


def test_the_planner_writes_into_the_form(page: Page) -> None:
    idea = page.use("inspire", "click", query="rain", instrumental=True)
    assert idea["prompt"], idea["notice"]
    assert idea["instrumental"] is True
    assert "Here is an idea" in idea["notice"]
    polished = page.use("polish", "click", prompt="rain", lyrics="drops", seed=1)
    assert "Polished" in polished["notice"]
    assert polished["prompt"]
    for name, words in (("inspire", "in a few words"), ("polish", "nothing to polish")):
        assert words in page.use(name, "click")["notice"]
    page.studio.engines.llm.unload()


def test_choices_are_refused_with_a_reason(page: Page) -> None:
    told = page.use("device", "change", device="mps")
    assert 'role="alert"' in told["notice"]
    assert "not available here" in told["notice"]
    fine = page.use("device", "change", device="cpu")
    assert fine["backend"] == "pt"
    assert fine["duration"]["maximum"] == 600
    assert "cannot be used on cpu" in page.use("backend", "change", backend="vllm")["notice"]
    assert "alert" not in page.use("backend", "change", backend="pt")["notice"]
    assert page.use("model", "change", model="nothing of that name")["task"]["choices"]
    assert "is missing" in page.use("start", "click", model=None)["notice"]
    assert "the prompt is empty" in page.use("make", "click")["notice"]


def test_start_and_stop(make_studio: Callable[..., Studio], handler: AceStepHandler) -> None:
    page = Page(make_studio())
    seen = page.use("start", "click")
    assert "The service is ready" in seen["notice"]
    assert "Loaded: demo on cpu" in seen["service_status"]
    assert (
        "nothing of that name" in page.use("start", "click", model="nothing of that name")["notice"]
    )
    fixed = Page(make_studio(service_mode=True))
    assert "fixed configuration" in fixed.use("stop", "click")["notice"]
    assert "fixed by whoever" in fixed.parts["service_status"].value
    assert handler.pipeline is not None


def test_uploads_are_shown_or_refused(page: Page) -> None:
    source = page.studio.uploads / "a<b>.wav"
    soundfile.write(source, np.sin(np.arange(24000) / 9), 48000)
    shown = page.use("source_file", "upload", source_file=str(source))
    assert "a&lt;b&gt;.wav, 0.5 s" in shown["source_wave"]
    assert shown["task"] == "repaint"
    source.write_bytes(b"nonsense")
    assert "not readable" in page.use("source_file", "upload", source_file=str(source))["notice"]
    assert "No source" in page.use("source_file", "clear")["source_wave"]
    drawn = page.use("source_wave", "select", {"start": 0.251, "end": 0.4})
    assert drawn == {"repaint_start": 0.25, "repaint_end": 0.4}


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_every_label_changes_with_the_language(studio: Studio, language: str) -> None:
    page, words = Page(studio, language), texts(language)
    other = "ja" if language == "zh" else "zh"
    assert page.parts["make"].value == words("make.label")
    seen = page.use("page_language", "change", page_language=other)
    assert seen["make"]["value"] == texts(other)("make.label")
    assert texts(other)("page.title") in seen["title"]
    labels = dict(seen["task"]["choices"])
    assert labels[texts(other)("task.cover")] == "cover"
    for number in range(len(form.EXAMPLES)):
        assert page.use(f"example_{number}", "click")["prompt"]


def test_progress_tells_stage_time_and_place(studio: Studio) -> None:
    words = texts("en")
    running = Job("a" * 32, "x", "song", HTML, lambda job: None, state="running", started=0.0)
    running.fraction, running.stage = 0.5, "step 4/8"
    bars = results.progress(words, studio.line, [running])
    assert 'value="50"' in bars
    assert "diffusion, step 4/8 · about" in bars
    assert HTML not in bars
    waiting = Job("a" * 32, "x", "inspire", "", lambda job: None)
    assert "Next in the queue" in results.progress(words, studio.line, [waiting])
    assert results.stage(words, "planning, token 12") == "planning, token 12"
    assert results.stage(words, "whatever") == "working"


def test_a_song_of_any_values_is_harmless_html(tmp_path: Path) -> None:
    song = StoredSong(
        "0" * 16, HTML, 0.0, 1.0, 1, "song.flac", made={HTML: HTML, "checkpoint": HTML},
        lines=[(0.0, 1.0, HTML)], warnings=[HTML], score=None, peaks=[0.0, 1.0],
        files=["song.flac"],
    )  # fmt: skip
    assert "<script" not in results.songs(texts("en"), [song])
    assert "<script" not in results.notice(texts("en"), HTML, error=True)
