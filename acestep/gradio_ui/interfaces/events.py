"""What happens when something on the page is pressed, chosen or loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr
from gradio.context import Context

from acestep.errors import RequestError
from acestep.gradio_ui import safety
from acestep.gradio_ui.interfaces import form, results, service
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.interfaces.sources import SourceEvents
from acestep.gradio_ui.jobs import CANCELLED, DONE, Job
from acestep.gradio_ui.settings import Choice
from acestep.gradio_ui.song_request import SongRequest
from acestep.gradio_ui.studio import Studio, Visitor
from acestep.gradio_ui.texts import Texts, texts

_GLANCE = 0.25
"""Seconds between two looks at the jobs."""

_WRITTEN = (
    "prompt", "lyrics", "bpm", "key", "time_signature", "language", "duration", "instrumental",
)  # fmt: skip
"""What the planner writes into the form."""

LANGUAGE_COOKIE = "acestep_language"
_REMEMBER_LANGUAGE = """
(language) => {
  document.documentElement.lang = language;
  document.cookie = `acestep_language=${language}; path=/; max-age=31536000; samesite=lax`;
  return language;
}
"""

Update = dict[Any, Any]


def visitor(request: gr.Request) -> Visitor:
    """Who sent a request."""
    address = request.client.host if request.client else "unknown"
    name = safety.visitor(dict(request.cookies), str(request.session_hash))
    return Visitor(name, str(address))


class Events:
    """The page's reactions; each method but `wire` is one that gradio calls.

    Args:
        parts: the page's components.
        studio: what does the work.
    """

    def __init__(self, parts: Parts, studio: Studio) -> None:
        self.parts, self.studio = parts, studio
        self.sources = SourceEvents(parts, studio, visitor)

    def wire(self) -> None:
        """Connect the components."""
        pick, p = self.parts.pick, self.parts.made
        now: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # The line of jobs keeps the order; gradio's own queue need not hold anyone up.
        long = {**now, "concurrency_limit": None, "trigger_mode": "multiple"}
        words, choice, fields = p["page_language"], pick(*service.CHOICE), pick(*form.FIELDS)
        told = pick("notice", "progress", "cancel", "songs", "service_status")
        bounded = pick("duration", "batch", "task")

        p["make"].click(self.make, [words, *fields], told, **long)
        p["start"].click(self.start, [words, p["with_planner"], *choice], [*told, *bounded], **long)
        p["stop"].click(self.stop, [words], told, **long)
        ideas = [*told, *pick(*_WRITTEN)]
        p["inspire"].click(self.inspire, [words, *pick("query", "instrumental")], ideas, **long)
        p["polish"].click(self.polish, [words, *fields], ideas, **long)
        p["cancel"].click(self.cancel, None, None, **long)
        p["device"].change(
            self.device,
            [words, p["device"]],
            [*pick("notice", "service_status", "backend"), *bounded],
            **now,
        )
        p["model"].change(self.model, pick("model", "task"), p["task"], **now)
        p["backend"].change(self.backend, [words, *choice], p["notice"], **now)
        p["songs"].click(
            self.song_action,
            [words],
            [*pick("notice", "songs", "source_wave", "source"), *fields],
            **now,
        )
        for number, button in enumerate(pick(*(f"example_{n}" for n in range(len(form.EXAMPLES))))):
            button.click(_filler(self.parts, number), None, fields, **now)
        self.sources.wire(now)
        p["page_language"].change(
            self.speak,
            [words],
            [
                *self.parts.labelled,
                *pick("title", "make_heading", "progress", "songs", "service_status"),
            ],
            js=_REMEMBER_LANGUAGE,
            **now,
        )
        blocks = Context.root_block
        if blocks is not None:
            arrived = [*told, *pick("model", "device", "page_language")]
            blocks.load(self.arrive, [words], arrived, **long)

    async def make(self, language: str, request: gr.Request, *values: Any) -> AsyncIterator[Update]:
        """Make songs with what stands in the form."""
        form_values = dict(zip(form.FIELDS, values, strict=True))
        async for update in self._follow(
            texts(language),
            visitor(request),
            lambda who: self.studio.make(who, SongRequest.of(form_values)),
        ):
            yield update

    async def start(
        self, language: str, planner: bool, request: gr.Request, *values: Any
    ) -> AsyncIterator[Update]:
        """Load what the service panel says."""
        words = texts(language)

        def submit(who: Visitor) -> Job:
            return self.studio.start(who, service.chosen(values), planner=planner)

        async for update in self._follow(words, visitor(request), submit):
            yield update
        yield self._bounds(values[1]) | self._tasks(values[0], None)

    async def stop(self, language: str, request: gr.Request) -> AsyncIterator[Update]:
        """Let the models go."""
        async for update in self._follow(texts(language), visitor(request), self.studio.stop):
            yield update

    async def inspire(
        self, language: str, query: str, instrumental: bool, request: gr.Request
    ) -> AsyncIterator[Update]:
        """Have the planner invent a song from a few words."""
        async for update in self._follow(
            texts(language),
            visitor(request),
            lambda who: self.studio.inspire(who, query or "", bool(instrumental)),
            self._write,
        ):
            yield update

    async def polish(
        self, language: str, request: gr.Request, *values: Any
    ) -> AsyncIterator[Update]:
        """Have the planner rewrite prompt and lyrics."""
        given = dict(zip(form.FIELDS, values, strict=True))
        async for update in self._follow(
            texts(language),
            visitor(request),
            lambda who: self.studio.polish(who, SongRequest.of(given)),
            self._write,
        ):
            yield update

    async def arrive(self, language: str, request: gr.Request) -> AsyncIterator[Update]:
        """A page was opened: show what there is, and follow what is being made."""
        language = request.cookies.get(LANGUAGE_COOKIE, language)
        words, who, p = texts(language), visitor(request), self.parts.made
        choice = self.studio.choice
        yield self._overview(words, who) | {
            p["page_language"]: words.language,
            p["notice"]: results.notice(words, ""),
            p["model"]: choice.model,
            p["device"]: choice.device,
        }
        for job in self.studio.line.active(who.name):
            async for update in self._watch(words, who, job):
                yield update

    def speak(self, language: str, request: gr.Request) -> Update:
        """Another language was chosen: label everything anew."""
        words, p = texts(language), self.parts.made
        updates = self._overview(words, visitor(request))
        del updates[p["cancel"]]
        return {
            **updates,
            **self.parts.relabelled(words.language),
            p["title"]: results.title(words),
            p["make_heading"]: results.heading(words),
        }

    def cancel(self, request: gr.Request) -> None:
        """Cancel everything that this visitor has in the line; those who watch it will say so."""
        self.studio.line.cancel(visitor(request).name)

    def device(self, language: str, device: str) -> Update:
        """Another device was chosen: its limits and backend, or why it cannot be."""
        words, p = texts(language), self.parts.made
        try:
            policy = Choice(device=device or "auto").policy()
        except RequestError as error:
            return {p["notice"]: results.notice(words, str(error), error=True)}
        return {
            p["notice"]: results.notice(words, ""),
            p["service_status"]: service.status(self.studio, words, device),
            p["backend"]: policy.lm_backend,
            **self._bounds(device),
        }

    def backend(self, language: str, *values: Any) -> str:
        """Another backend was chosen: say at once if the device cannot run it."""
        words = texts(language)
        try:
            service.chosen(values).policy()
        except RequestError as error:
            return results.notice(words, str(error), error=True)
        return results.notice(words, "")

    def model(self, model: str, task: str) -> Any:
        """Another checkpoint was chosen: offer the tasks that it can do."""
        return self._tasks(model, task)[self.parts["task"]]

    def song_action(self, language: str, request: gr.Request, event: gr.EventData) -> Update:
        """A button of a song was pressed."""
        words, who, p = texts(language), visitor(request), self.parts.made
        data = event._data if isinstance(event._data, dict) else {}
        action, song_id = str(data.get("action", "")), str(data.get("id", ""))
        song = self.studio.store.get(who.name, song_id)
        if song is None:
            return {p["songs"]: results.songs(words, self.studio.store.list(who.name))}
        if action == "delete":
            self.studio.store.delete(who.name, song_id)
            return {
                p["songs"]: results.songs(words, self.studio.store.list(who.name)),
                p["notice"]: results.notice(words, words("done.deleted")),
            }
        if action == "use":
            return self.sources.use(words, song)
        values = SongRequest.of(song.asked)
        return {
            **{p[name]: getattr(values, name) for name in form.FIELDS if name in song.asked},
            p["notice"]: results.notice(words, words("done.again")),
        }

    async def _follow(
        self,
        words: Texts,
        who: Visitor,
        submit: Callable[[Visitor], Job],
        finish: Callable[[Job], Update] | None = None,
    ) -> AsyncIterator[Update]:
        """Submit a job and show how it goes, to its end."""
        p = self.parts.made
        try:
            job = submit(who)
        except RequestError as error:
            yield {p["notice"]: results.notice(words, str(error), error=True)}
            return
        yield {p["notice"]: results.notice(words, "")}
        async for update in self._watch(words, who, job):
            yield update
        if finish is not None and job.state == DONE:
            yield finish(job)

    async def _watch(self, words: Texts, who: Visitor, job: Job) -> AsyncIterator[Update]:
        p, shown = self.parts.made, ""
        while job.active:
            bars = results.progress(words, self.studio.line, self.studio.line.active(who.name))
            if bars != shown:
                yield {p["progress"]: bars, p["cancel"]: gr.update(interactive=True)}
                shown = bars
            await asyncio.sleep(_GLANCE)
        yield self._overview(words, who) | {p["notice"]: outcome(words, job)}

    def _overview(self, words: Texts, who: Visitor) -> Update:
        """The visitor's jobs and songs, and the service's state."""
        p, active = self.parts.made, self.studio.line.active(who.name)
        return {
            p["progress"]: results.progress(words, self.studio.line, active),
            p["cancel"]: gr.update(interactive=bool(active)),
            p["songs"]: results.songs(words, self.studio.store.list(who.name)),
            p["service_status"]: service.status(self.studio, words, self.studio.choice.device),
        }

    def _write(self, job: Job) -> Update:
        """What the planner wrote, as form values; what it left out stays as it is."""
        made, p = job.result, self.parts.made
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
        return {p[name]: value for name, value in values.items() if value not in (None, "")}

    def _bounds(self, device: str) -> Update:
        longest, most = form.bounds(device, self.studio.engines.llm_loaded)
        return {
            self.parts["duration"]: gr.update(maximum=longest),
            self.parts["batch"]: gr.update(maximum=max(most, 2), interactive=most > 1),
        }

    def _tasks(self, model: str, task: str | None) -> Update:
        able = form.tasks(self.studio, model)
        kept = {} if task is None or task in able else {"value": able[0]}
        choices = form.task_choices(able)
        self.parts.offer("task", choices)
        return {self.parts["task"]: gr.update(choices=choices(self.parts.words), **kept)}


def outcome(words: Texts, job: Job) -> str:
    """How a job ended, as a notice."""
    if job.state == CANCELLED:
        return results.notice(words, words("done.cancelled"))
    if job.state == DONE:
        count = len(job.result) if isinstance(job.result, list) else 0
        return results.notice(words, words(f"done.{job.kind}", count=count))
    return results.notice(words, job.error or "", error=True)


def _filler(parts: Parts, number: int) -> Callable[[], Update]:
    def fill() -> Update:
        return {parts[name]: value for name, value in form.example_values(number).items()}

    return fill
