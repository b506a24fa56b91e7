"""What happens when something on the page is pressed, chosen or loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from acestep.errors import RequestError
from acestep.gradio_ui.finishing import NO_HEARING
from acestep.gradio_ui.interfaces import (
    _drafts,
    _showing,
    _wiring,
    _writing,
    form,
    results,
    service,
)
from acestep.gradio_ui.interfaces._following import Follower, outcome, visitor
from acestep.gradio_ui.interfaces._showing import Shape
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.interfaces.sources import SourceEvents
from acestep.gradio_ui.jobs import Job
from acestep.gradio_ui.settings import Choice
from acestep.gradio_ui.song_request import TITLE, SongRequest, cleaned
from acestep.gradio_ui.store import StoredSong
from acestep.gradio_ui.studio import Studio, Visitor
from acestep.gradio_ui.texts import Texts, texts

__all__ = ["LANGUAGE_COOKIE", "Events", "outcome", "visitor"]

_VARIATIONS = 2

LANGUAGE_COOKIE = "acestep_language"

Update = dict[Any, Any]


class Events:
    """The page's reactions; each method but `wire` is one that gradio calls.

    Args:
        parts: the page's components.
        studio: what does the work.
    """

    def __init__(self, parts: Parts, studio: Studio) -> None:
        self.parts, self.studio = parts, studio
        self.follower = Follower(parts, studio)
        self.sources = SourceEvents(parts, studio, visitor)

    def wire(self) -> None:
        """Connect the components."""
        _wiring.wire(self)

    async def make(self, language: str, request: gr.Request, *values: Any) -> AsyncIterator[Update]:
        """Make songs with what stands in the form."""
        form_values = dict(zip(form.FIELDS, values, strict=True))

        def submit(who: Visitor) -> Job:
            if form_values["task"] == form.ALIGN:
                asked = SongRequest.of({**form_values, "task": "text2music"})
                return self.studio.align(who, asked)
            return self.studio.make(who, SongRequest.of(form_values))

        async for update in self.follower.follow(language, visitor(request), submit):
            yield update

    async def _create(
        self, language: str, idea: str, request: gr.Request, *values: Any
    ) -> AsyncIterator[Update]:
        """Make songs of an idea and nothing else."""
        given = dict(zip(form.SIMPLE, values, strict=True))

        def submit(who: Visitor) -> Job:
            return self.studio.create(who, idea or "", SongRequest.of(given))

        async for update in self.follower.follow(language, visitor(request), submit):
            yield update

    async def start(
        self, language: str, planner: bool, request: gr.Request, *values: Any
    ) -> AsyncIterator[Update]:
        """Load what the service panel says."""

        def submit(who: Visitor) -> Job:
            return self.studio.start(
                who, service.chosen(values, self.studio.options.choice), planner=planner
            )

        async for update in self.follower.follow(language, visitor(request), submit):
            yield update

    async def stop(self, language: str, request: gr.Request) -> AsyncIterator[Update]:
        """Let the models go."""
        async for update in self.follower.follow(language, visitor(request), self.studio.stop):
            yield update

    async def inspire(
        self, language: str, request: gr.Request, *values: Any
    ) -> AsyncIterator[Update]:
        """Have the planner invent a song from the words in the form."""
        stood = dict(zip(_writing.WRITTEN, values, strict=True))
        idea, instrumental = stood["prompt"] or "", bool(stood["instrumental"])
        async for update in self.follower.follow(
            language,
            visitor(request),
            lambda who: self.studio.inspire(who, idea, instrumental),
            self._writer(stood),
        ):
            yield update

    async def polish(
        self, language: str, request: gr.Request, *values: Any
    ) -> AsyncIterator[Update]:
        """Have the planner rewrite prompt and lyrics."""
        given = dict(zip(form.FIELDS, values, strict=True))
        async for update in self.follower.follow(
            language,
            visitor(request),
            lambda who: self.studio.polish(who, SongRequest.of(given)),
            self._writer(given),
        ):
            yield update

    def _writer(self, stood: dict[str, Any]) -> Callable[[Texts, Job], Update]:
        def finish(words: Texts, job: Job) -> Update:
            toy = self.studio.engines.toy_planner
            return _writing.write(self.parts, words, job, stood, toy)

        return finish

    def _undo(self, language: str, before: str) -> Update:
        """Give the person's own words back."""
        return _writing.undo(self.parts, texts(language), before or "")

    async def arrive(self, language: str, request: gr.Request) -> AsyncIterator[Update]:
        """A page was opened: show what there is, and follow what is being made."""
        language = request.cookies.get(LANGUAGE_COOKIE, language)
        who, p = visitor(request), self.parts.made
        words = self.follower.speaks(who, language)
        choice = self.studio.choice
        yield self.follower.overview(words, who) | {
            p["page_language"]: words.language,
            p["notice"]: results.notice(words, ""),
            p["model"]: choice.model,
            p["device"]: choice.device,
            p["model_note"]: results.model_note(words, self._able.toy),
        }
        for job in self.studio.line.active(who.name):
            async for update in self.follower.watch(language, who, job):
                yield update

    def _read(self, language: str, draft: str, request: gr.Request) -> Update:
        """A page was opened: what stood in its form before stands there again."""
        language = request.cookies.get(LANGUAGE_COOKIE, language)
        words, p = texts(language), self.parts.made
        offered = {
            name: [value for _, value in part.choices]
            for name, part in zip(_drafts.KEPT, self.parts.pick(*_drafts.KEPT), strict=True)
            if getattr(part, "choices", None)
        }
        offered["task"] = form.tasks(self.studio, self.studio.choice.model)
        kept = _drafts.read(str(draft or ""), offered)
        if not kept:
            # Nothing is hidden or shown that the person may have changed by now.
            return {p["undo"]: gr.update()}
        names = ("mode", "task", "audio_format", "repaint_mode", "lora", "before", "source_song")
        shape = Shape(**{name: kept[name] for name in names if name in kept})
        if shape.source_song and not self.studio.store.get(
            visitor(request).name, shape.source_song
        ):
            del kept["source_song"]
            shape = replace(shape, source_song="")
        shown = self._shown(words, shape)
        wave = self.sources.shown(words, visitor(request), None, shape.source_song, shape.task)
        values: Update = {}
        for name, value in kept.items():
            more = shown.get(p[name], gr.update())
            values[p[name]] = {**more, "value": value}
        return {**shown, **values, p["source_wave"]: wave}

    def speak(self, language: str, request: gr.Request, *values: Any) -> Update:
        """Another language was chosen: label everything anew."""
        who, p = visitor(request), self.parts.made
        words, shape = self.follower.speaks(who, language), _shape(values)
        shown = self._shown(words, shape)
        labels = self.parts.relabelled(words.language)
        merged = {part: {**update, **shown.get(part, {})} for part, update in labels.items()}
        return {
            **shown,
            **merged,
            **self.follower.overview(words, who),
            p["title"]: results.title(words),
            p["make_heading"]: results.heading(words),
            p["songs_heading"]: results.songs_heading(words),
            p["banner"]: results.banner(words, self.studio.options.open_to_strangers),
            p["model_note"]: results.model_note(words, self._able.toy),
            p["notice"]: results.notice(words, ""),
            p["source_wave"]: self.sources.shown(
                words, who, shape.source_file, shape.source_song, shape.task
            ),
            p["reference_name"]: self.sources.referred(words, shape.reference_file),
        }

    def cancel(self, request: gr.Request) -> None:
        """Cancel everything that this visitor has in the line; those who watch it will say so."""
        self.studio.line.cancel(visitor(request).name)

    def _cancel_one(self, request: gr.Request, event: gr.EventData) -> None:
        """Cancel one of this visitor's jobs."""
        if job := _said(event).get("id"):
            self.studio.line.cancel(visitor(request).name, job)

    def device(self, language: str, device: str, engine: str) -> Update:
        """Another device or engine was chosen: its limits and backend, or why it cannot be."""
        words, p = texts(language), self.parts.made
        try:
            policy = Choice(device=device or "auto", engine=engine or "auto").policy()
        except RequestError as error:
            return {p["notice"]: results.notice(words, str(error), error=True)}
        return {
            p["notice"]: results.notice(words, ""),
            p["service_status"]: service.status(self.studio, words, device),
            p["backend"]: policy.lm_backend,
            **self._bounds(device),
        }

    def backend(self, language: str, *values: Any) -> str:
        """Another backend, or other bits: say at once if the device cannot compute so."""
        words = texts(language)
        try:
            service.chosen(values).policy()
        except RequestError as error:
            return results.notice(words, str(error), error=True)
        return results.notice(words, "")

    def model(self, language: str, model: str, task: str) -> Any:
        """Another checkpoint was chosen: offer the tasks that it can do."""
        return self._tasks(texts(language), model, task)[self.parts["task"]]

    async def song_action(
        self, language: str, request: gr.Request, event: gr.EventData
    ) -> AsyncIterator[Update]:
        """A button of a song was pressed."""
        words, who, p = texts(language), visitor(request), self.parts.made
        data = _said(event)
        action, song_id = data.get("action", ""), data.get("id", "")
        song = self.studio.store.get(who.name, song_id)
        if song is None:
            yield self._songs(words, who)
        elif action == "delete":
            self.studio.store.delete(who.name, song_id)
            yield self._songs(words, who, "done.deleted")
        elif action == "favourite":
            self.studio.store.change(who.name, song_id, favourite=not song.favourite)
            yield self._songs(words, who)
        elif action == "rename":
            title = " ".join(cleaned(data.get("title", "")).split())[:TITLE]
            if title:
                self.studio.store.change(who.name, song_id, title=title)
            yield self._songs(words, who, "done.renamed" if title else "")
        elif action == "use":
            yield {**self.sources.use(words, song), p["mode"]: "custom"}
        elif action in ("again", "vary") and song.kind == "song":
            async for update in self._remake(language, who, song, vary=action == "vary"):
                yield update

    async def _remake(
        self, language: str, who: Visitor, song: StoredSong, *, vary: bool
    ) -> AsyncIterator[Update]:
        """Make a song again from its seed, or others like it from new ones."""
        values, p = SongRequest.of(song.asked), self.parts.made
        if vary:
            most = form.bounds(self.studio.choice.device, self.studio.engines.llm_loaded)[1]
            values = replace(values, seed=-1, batch=min(_VARIATIONS, most))
        filled = {p[name]: getattr(values, name) for name in form.FIELDS if name in song.asked}
        for name in ("source_file", "reference_file"):
            # A button for uploads shows no value that it did not get from the person.
            filled.pop(p[name], None)
        yield {**filled, p["mode"]: "custom"}
        async for update in self.follower.follow(
            language, who, lambda who: self.studio.make(who, values, song.idea)
        ):
            yield update

    def _songs(self, words: Texts, who: Visitor, told: str = "") -> Update:
        shown = {self.parts["songs"]: results.songs(words, self.studio.store.list(who.name))}
        notice = {self.parts["notice"]: results.notice(words, words(told))} if told else {}
        return {**shown, **notice}

    def _changed(self, language: str, request: gr.Request, *values: Any) -> Update:
        """Another model is loaded: what there is to choose with it."""
        words, choice = self.follower.speaks(visitor(request), language), self.studio.choice
        self.parts.offer("lora", form.adapters(self.studio))
        shape = _shape(values)
        shown = self._shown(words, shape)
        changed = self._tasks(words, choice.model, shape.task) | self._bounds(choice.device)
        lora = gr.update(choices=form.adapters(self.studio)(words))
        for part, update in {**changed, self.parts["lora"]: lora}.items():
            shown[part] = {**shown.get(part, {}), **update}
        return {
            **shown,
            self.parts["model_note"]: results.model_note(words, self._able.toy),
        }

    def _shape(self, language: str, *values: Any) -> Update:
        """Another task, format or the like was chosen: other controls have a use."""
        words, shape = texts(language), _shape(values)
        told = {}
        if shape.task == form.ALIGN and self._able.toy:
            told = {self.parts["notice"]: results.notice(words, NO_HEARING, error=True)}
        return self._shown(words, shape) | told

    def _mode(self, language: str, query: str, prompt: str, *values: Any) -> Update:
        """The other mode: the words go along where there are none yet."""
        p, shape = self.parts.made, _shape(values)
        shown = self._shown(texts(language), shape)
        if shape.mode == "custom" and query and not prompt:
            shown[p["prompt"]] = {**shown[p["prompt"]], "value": query}
        if shape.mode == "simple" and prompt and not query:
            shown[p["query"]] = prompt
        return shown

    def _shown(self, words: Texts, shape: Shape) -> Update:
        engines = self.studio.engines
        most = form.bounds(self.studio.choice.device, engines.llm_loaded)[1]
        shown = _showing.visible(shape, self._able, engines.real_planner, most)
        return _showing.updates(self.parts, words, shape, shown)

    @property
    def _able(self) -> Any:
        return self.studio.engines.abilities(self.studio.choice.model)

    def _bounds(self, device: str) -> Update:
        longest, most = form.bounds(device, self.studio.engines.llm_loaded)
        return {
            self.parts["duration"]: gr.update(maximum=longest),
            self.parts["batch"]: gr.update(maximum=most),
        }

    def _tasks(self, words: Texts, model: str, task: str | None) -> Update:
        able = form.tasks(self.studio, model)
        kept = {} if task is None or task in able else {"value": able[0]}
        choices = form.task_choices(able)
        self.parts.offer("task", choices)
        return {self.parts["task"]: gr.update(choices=choices(words), **kept)}


def _shape(values: tuple[Any, ...]) -> Shape:
    given = dict(zip(_showing.SHAPE, values, strict=True))
    return Shape(**{name: value for name, value in given.items() if value is not None})


def _said(event: gr.EventData) -> dict[str, str]:
    """What the page's script says of a press; anything may be sent."""
    data = event._data if isinstance(event._data, dict) else {}
    return {str(name): value for name, value in data.items() if isinstance(value, str)}
