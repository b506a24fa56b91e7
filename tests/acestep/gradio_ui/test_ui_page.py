"""The page's reactions, called as gradio calls them: what each shows, and what it never does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.gradio_ui.engines import Abilities
from acestep.gradio_ui.interfaces import _drafts, form, results
from acestep.gradio_ui.interfaces._apps import without_apps
from acestep.gradio_ui.interfaces._following import Follower
from acestep.gradio_ui.interfaces._showing import Shape, visible
from acestep.gradio_ui.interfaces.events import outcome, visitor
from acestep.gradio_ui.interfaces.generation import create_generation_section
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.jobs import CANCELLED, DONE, Job
from acestep.gradio_ui.pace import Course
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
            with without_apps(), gr.Blocks(analytics_enabled=False) as self.blocks:
                return create_generation_section(None, None, {"studio": studio}, language)

        self.parts = asyncio.run(build())
        self.names = {part: name for name, part in self.parts.items()}
        self.request = SimpleNamespace(
            cookies={"acestep_visitor": "anna"}, client=None, session_hash="one"
        )

    def use(self, name: str, event: str, data: Any = None, **values: Any) -> dict[str, Any]:
        """Press or change a component; the last value of each that was updated."""
        part = self.parts[name]
        (found,) = (
            fn for fn in self.blocks.fns.values() if (part._id, event) in fn.targets and fn.fn
        )
        given = [values.get(self.names[p], p.value) for p in found.inputs]
        return self.call(found, given, data)

    def open(self, draft: list[Any] | None = None) -> dict[str, Any]:
        """Load the page, in a browser that kept a draft."""
        arrive, read = (fn for fn in self.blocks.fns.values() if fn.targets[0][1] == "load")
        kept = "" if draft is None else json.dumps(draft)
        return self.call(arrive, ["en"], None) | self.call(read, ["en", kept], None)

    def songs(self) -> list[StoredSong]:
        """The visitor's songs."""
        (owner,) = (path.name for path in self.studio.store.root.iterdir())
        return self.studio.store.list(owner)

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


def test_make_use_rename_mark_and_delete(page: Page) -> None:
    values = {"prompt": f"piano {HTML}", "lyrics": "[verse]\nla la", "duration": 1, "steps": 2}
    seen = page.use("make", "click", **values, seed=4)
    assert "Done. New songs: 1." in seen["notice"]
    assert HTML not in seen["songs"]
    assert "&lt;script&gt;" in seen["songs"]
    assert seen["cancel"]["visible"] is False
    assert page.open()["songs"] == seen["songs"]
    (song,) = page.songs()
    assert f'href="#song-{song.id}"' in seen["notice"]
    used = page.use("songs", "click", {"action": "use", "id": song.id})
    assert (used["source_song"], used["task"], used["mode"]) == (song.id, "repaint", "custom")
    assert 'class="wave range"' in used["source_wave"]
    assert page.use("songs", "click", {"action": "use", "id": "../../etc"}).keys() == {"songs"}
    assert page.use("songs", "click", None).keys() == {"songs"}
    renamed = page.use(
        "songs", "click", {"action": "rename", "id": song.id, "title": f" b{HTML}\n "}
    )
    assert HTML not in renamed["songs"]
    marked = page.use("songs", "click", {"action": "favourite", "id": song.id})
    assert 'aria-pressed="true"' in marked["songs"]
    (kept,) = page.songs()
    assert (kept.title, kept.favourite) == (f"b{HTML}", True)
    page.use("songs", "click", {"action": "rename", "id": song.id, "title": " \x00 "})
    assert page.songs() == [kept]
    gone = page.use("songs", "click", {"action": "delete", "id": song.id})
    assert "Deleted" in gone["notice"]
    assert page.songs() == []


def test_again_and_variations_are_made_at_once(page: Page) -> None:
    values = {"prompt": "piano", "lyrics": "la la", "duration": 1, "steps": 2, "batch": 2}
    page.use("make", "click", **values, seed=4)
    second, first = sorted(page.songs(), key=lambda song: -song.seed)
    assert (first.seed, second.seed) == (4, 5)
    again = page.use("songs", "click", {"action": "again", "id": second.id})
    assert (again["seed"], again["lyrics"], again["mode"]) == (5, "la la", "custom")
    assert "New songs: 1." in again["notice"]
    made = page.songs()
    assert [song.seed for song in made].count(5) == 2
    twins = [page.studio.store.path(owner_of(page), s.id, s.audio) for s in made if s.seed == 5]
    assert twins[0].read_bytes() == twins[1].read_bytes()
    varied = page.use("songs", "click", {"action": "vary", "id": second.id})
    assert "New songs: 2." in varied["notice"]
    assert len({song.seed for song in page.songs()}) == 4


def owner_of(page: Page) -> str:
    (owner,) = (path.name for path in page.studio.store.root.iterdir())
    return owner


def test_one_idea_makes_a_song_and_nothing_else_counts(page: Page) -> None:
    seen = page.use(
        "create", "click", query=" rain on a piano ", duration=1, lyrics="unseen", bpm=40, seed=2
    )
    assert "New songs: 1." in seen["notice"], seen["notice"]
    (song,) = page.songs()
    assert (song.title, song.seed, song.seconds) == ("rain on a piano", 2, 1.0)
    assert song.made["caption"] == "rain on a piano"
    assert "lyrics" not in song.made
    assert "bpm" not in song.made
    assert "in a few words" in page.use("create", "click", query=" ")["notice"]
    over = page.use("mode", "change", mode="custom", query="rain")
    assert (over["prompt"]["value"], over["make"]["visible"]) == ("rain", True)
    assert over["create"]["visible"] is False
    back = page.use("mode", "change", mode="simple", prompt="sun", query="rain")
    assert back.get("query") is None
    assert back["create"]["visible"] is True


def test_the_planner_keeps_the_persons_words(page: Page) -> None:
    stood = {"prompt": "rain", "lyrics": "my own words", "bpm": 70, "instrumental": True}
    idea = page.use("inspire", "click", **stood)
    assert idea["prompt"], idea["notice"]
    assert "Your own words are kept" in idea["notice"]
    assert "ten instruments" in idea["notice"]
    assert idea["undo"]["visible"] is True
    back = page.use("undo", "click", before=idea["before"])
    assert {name: back[name] for name in stood} == stood
    assert (back["before"], back["undo"]["visible"]) == ("", False)
    polished = page.use("polish", "click", **stood, seed=1)
    assert polished["prompt"]
    # The built-in planner loses words of lyrics: it does not get to.
    assert polished.get("lyrics", stood["lyrics"]) == stood["lyrics"]
    assert page.use("undo", "click", before=polished["before"])["prompt"] == "rain"
    for name, words in (("inspire", "in a few words"), ("polish", "nothing to polish")):
        told = page.use(name, "click", lyrics="words without a prompt")
        assert words in told["notice"]
        assert "prompt" not in told
    for hostile in ("[]", "null", "{", "[" * 9999, '{"bpm": "fast", "lyrics": {"a": 1}}'):
        given = page.use("undo", "click", before=hostile)
        assert given.keys() & {"bpm", "lyrics"} == set()
    page.studio.engines.llm.unload()


def test_only_what_task_and_model_have(page: Page) -> None:
    """The built-in checkpoint is distilled, so nothing of guidance is ever there."""

    def shown(**shape: str) -> set[str]:
        seen = page.use("task", "change", mode="custom", **shape)
        return {name for name, update in seen.items() if name != "notice" and update["visible"]}

    new = shown(task="text2music")
    assert {"prompt", "lyrics", "duration", "seed", "batch", "thinking", "helpers"} <= new
    assert not new & {"source_box", "range_row", "cover_strength", "track", "guidance", "adg"}
    assert not new & {"lora", "undo", "clear_source", "create"}
    cover = shown(task="cover")
    assert {"source_box", "cover_strength"} <= cover
    assert not cover & {"duration", "range_row", "repaint_mode", "thinking"}
    repaint = shown(task="repaint")
    assert {"range_row", "repaint_mode", "repaint_strength"} <= repaint
    assert "repaint_strength" not in shown(task="repaint", repaint_mode="aggressive")
    assert {"source_box", "lyrics", "make"} <= shown(task="align")
    assert not shown(task="align") & {"prompt", "seed", "batch", "bpm", "advanced"}
    assert page.use("task", "change", mode="custom", task="align")["make"]["value"] == (
        "Time the lyrics"
    )
    for kind, there in (("flac", {"bit_depth"}), ("mp3", {"bitrate"}), ("ogg", set())):
        assert shown(task="text2music", audio_format=kind) & {"bit_depth", "bitrate"} == there
    told = page.use("task", "change", mode="custom", task="align")
    assert "load another model" in told["notice"]
    other = page.use("model", "change", page_language="ja", model="demo")
    assert (texts("ja")("task.cover"), "cover") in other["task"]["choices"]


def test_a_base_model_has_guidance_and_its_tasks(page: Page) -> None:
    able = Abilities(ALL_TASKS, guided=True, adapters=("mine",))
    shape = Shape("custom", "extract", lora="mine")
    there = {name for name, is_there in visible(shape, able, False, 4).items() if is_there}
    assert {"guidance", "adg", "track", "lora", "lora_scale"} <= there
    assert not there & {"lyrics", "music", "tracks"}
    assert visible(replace(shape, task="complete"), able, False, 1)["batch"] is False
    simple = visible(Shape("simple", "cover"), able, True, 4)
    assert simple["instrumental"]
    assert not simple["source_box"]
    assert simple["duration"]


def test_a_reload_keeps_what_was_typed(page: Page) -> None:
    page.use("make", "click", prompt="piano", duration=1, steps=2)
    (song,) = page.songs()
    values = {name: page.parts[name].value for name in _drafts.KEPT}
    typed = values | {
        "prompt": "typed", "lyrics": "words", "bpm": 99, "mode": "custom", "task": "cover",
        "source_song": song.id, "before": '{"prompt": "first"}',
    }  # fmt: skip
    seen = page.open(list(typed.values()))
    assert (seen["prompt"]["value"], seen["lyrics"]["value"]) == ("typed", "words")
    assert (seen["bpm"]["value"], seen["mode"]["value"]) == (99, "custom")
    assert seen["undo"]["visible"] is True
    assert seen["custom_box"]["visible"] is True
    assert seen["source_box"]["visible"] is True
    assert "piano, 1.0 s" in seen["source_wave"]
    hostile = values | {
        "prompt": ["x"], "bpm": "quick", "key": "H major", "task": "lego", "mode": "evil",
        "source_file": "/etc/passwd", "source_song": "../..", "duration": {"a": 1}, "query": 7,
    }  # fmt: skip
    seen = page.open(list(hostile.values()))
    assert not any("value" in seen.get(name, {}) for name in ("prompt", "bpm", "key", "task"))
    assert not seen.keys() & {"source_file", "mode", "query"}
    assert "No source" in seen["source_wave"]
    for broken in ([], [1] * len(values), {"a": 1}, "text"):
        page.open(broken)  # type: ignore[arg-type]


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
    cleared = page.use("clear_source", "click")
    assert "No source" in cleared["source_wave"]
    assert (cleared["source_file"], cleared["source_song"]) == (None, "")
    assert cleared["repaint_end"] == 0
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
        filled = page.use(f"example_{number}", "click")
        assert filled["prompt"] == filled["query"]
        assert seen[f"example_{number}"]["value"] == texts(other)(f"example_{number}.label")
    ours = {text for key, text in words.table.items() if len(text) > 3}
    ours -= set(texts(other).table.values())
    left = {name: text for name, text in told(seen).items() if any(own in text for own in ours)}
    assert not left


def told(seen: dict[str, Any]) -> dict[str, str]:
    """Every text that an update of the page shows."""
    shown = {}
    for name, update in seen.items():
        if isinstance(update, str):
            shown[name] = update
        else:
            offered = [label for label, _ in update.get("choices", [])]
            spoken = [update.get(k, "") for k in ("value", "label", "info", "placeholder")]
            shown[name] = "\n".join(map(str, spoken + offered))
    return shown


def test_a_job_goes_on_in_the_language_its_visitor_changed_to(page: Page) -> None:
    who = visitor(page.request)
    release = threading.Event()
    blocker = page.studio.line.submit("f" * 32, "x", "load", "", lambda job: release.wait(20))
    follower = Follower(_parts(page), page.studio)

    async def watch() -> list[Any]:
        seen = []

        def submit(who: Any) -> Job:
            return page.studio.line.submit(who.name, "x", "load", "", lambda job: [])

        async for update in follower.follow("en", who, submit):
            seen.append(update)
            if len(seen) == 2:
                follower.speaks(who, "ja")
            if len(seen) == 3:
                release.set()
        return seen

    seen = asyncio.run(watch())
    assert blocker.finished.wait(20)
    shown = [u[page.parts["progress"]] for u in seen if page.parts["progress"] in u]
    assert "1 before you in the queue" in shown[0]
    assert texts("ja")("progress.place", count=1) in shown[1]
    assert texts("ja")("done.load") in seen[-1][page.parts["notice"]]


def _parts(page: Page) -> Parts:
    parts = Parts(texts("en"))
    parts.made = page.parts
    return parts


def test_progress_tells_stage_per_cent_time_and_place(studio: Studio) -> None:
    words, now = texts("en"), [0.0]
    running = Job("a" * 32, "x", "song", HTML, lambda job: None, state="running")
    bars = results.progress(words, studio.line, [running])
    assert "value=" not in bars
    course = Course({"diffusion": 8.0, "decoding": 2.0}, clock=lambda: now[0])
    running.course, running.stage = course, "step 4/8"
    course.at("diffusion", 0.0)
    now[0] = 6.0
    running.fraction = course.at("diffusion", 0.5)
    bars = results.progress(words, studio.line, [running])
    assert 'value="40"' in bars
    assert "40 % · diffusion, step 4/8 · about 9 s left" in bars
    assert f'data-cancel="{running.id}"' in bars
    assert HTML not in bars
    running.cancelled.set()
    assert "stopping at the next step" in results.progress(words, studio.line, [running])
    waiting = Job("a" * 32, "x", "inspire", "", lambda job: None)
    assert "Next in the queue" in results.progress(words, studio.line, [waiting])
    assert results.stage(words, "planning, token 12") == "planning, token 12"
    assert results.stage(words, "loading language model") == "loading the planner"
    assert results.stage(words, "whatever") == "working"


def test_cancel_takes_one_job_and_says_what_is_true(page: Page) -> None:
    line, who = page.studio.line, visitor(page.request)
    gate = threading.Event()

    def hold(job: Job) -> None:
        while not gate.wait(0.01):
            job.report(0.1, "step 1/8")

    first = line.submit(who.name, "x", "song", "first", hold)
    second = line.submit(who.name, "x", "song", "second", hold)
    other = line.submit("f" * 32, "y", "song", "other", lambda job: None)
    page.use("progress", "click", {"id": second.id})
    assert (first.active, second.state) == (True, CANCELLED)
    told = outcome(texts("en"), second, idle=False)
    assert "Cancelled: Song: second." in told
    assert "free" not in told
    page.use("progress", "click", {"id": other.id})
    page.use("progress", "click", None)
    assert not other.cancelled.is_set()
    page.use("cancel", "click")
    assert first.finished.wait(20)
    assert other.finished.wait(20)
    assert (first.state, other.state) == (CANCELLED, DONE)
    assert "The device is free." in outcome(texts("en"), first)


def test_an_open_page_says_so(make_studio: Callable[..., Studio]) -> None:
    for options, warned in (
        ({}, False),
        ({"server_name": "0.0.0.0"}, True),
        ({"share": True}, True),
        ({"server_name": "0.0.0.0", "auth_username": "a", "auth_password": "b"}, False),
    ):
        page = Page(make_studio(**options))
        assert ("asks for no login" in page.parts["banner"].value) is warned


@pytest.mark.parametrize("wordless", [False, True])
def test_a_song_of_any_values_is_harmless_html(wordless: bool) -> None:
    figures = dict.fromkeys(("lyrics_score", "coverage", "monotonicity", "confidence"), 0.5)
    song = StoredSong(
        "0" * 16, HTML, 0.0, 1.0, 1, "song.flac", made={HTML: HTML, "checkpoint": HTML},
        lines=[(0.0, 1.0, HTML)], warnings=[HTML], score=figures, peaks=[0.0, 1.0],
        files=["song.flac", "song.lrc"], wordless=wordless, idea=HTML, asked={"prompt": HTML},
    )  # fmt: skip
    shown = results.songs(texts("en"), [song])
    assert "<script" not in shown
    # What cannot sing has no times and no score.
    assert ("Lyric score" in shown) is not wordless
    assert ("data-seek" in shown) is not wordless
    assert ("song.lrc" in shown) is not wordless
    assert "<script" not in results.notice(texts("en"), HTML, error=True)
