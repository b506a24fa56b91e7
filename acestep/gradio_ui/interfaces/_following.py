"""Jobs as their visitor sees them: submitted, followed to their end, told in their language."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from acestep.errors import RequestError
from acestep.gradio_ui import safety
from acestep.gradio_ui.interfaces import results, service
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.jobs import CANCELLED, DONE, Job
from acestep.gradio_ui.studio import Studio, Visitor
from acestep.gradio_ui.texts import Texts, texts

_GLANCE = 0.25
"""Seconds between two looks at the jobs."""

_REMEMBERED = 2000

Update = dict[Any, Any]


def visitor(request: gr.Request) -> Visitor:
    """Who sent a request."""
    address = request.client.host if request.client else "unknown"
    name = safety.visitor(dict(request.cookies), str(request.session_hash))
    return Visitor(name, str(address))


class Follower:
    """Shows visitors their jobs.

    Args:
        parts: the page's components.
        studio: what does the work.
    """

    def __init__(self, parts: Parts, studio: Studio) -> None:
        self.parts, self.studio = parts, studio
        # A job may outlast the language that its visitor began it in.
        self._spoken: OrderedDict[str, str] = OrderedDict()

    def speaks(self, who: Visitor, language: str) -> Texts:
        """Remember a visitor's language."""
        self._spoken[who.name] = language
        self._spoken.move_to_end(who.name)
        while len(self._spoken) > _REMEMBERED:
            self._spoken.popitem(last=False)
        return texts(language)

    async def follow(
        self,
        language: str,
        who: Visitor,
        submit: Callable[[Visitor], Job],
        finish: Callable[[Texts, Job], Update] | None = None,
    ) -> AsyncIterator[Update]:
        """Submit a job and show how it goes, to its end."""
        words, p = self.speaks(who, language), self.parts.made
        try:
            job = submit(who)
        except RequestError as error:
            yield {p["notice"]: results.notice(words, str(error), error=True)}
            return
        yield {p["notice"]: results.notice(words, "")}
        async for update in self.watch(language, who, job):
            yield update
        if finish is not None and job.state == DONE:
            yield finish(self._words(who, language), job)

    async def watch(self, language: str, who: Visitor, job: Job) -> AsyncIterator[Update]:
        """Show how a job goes, to its end."""
        p, shown = self.parts.made, ""
        while job.active:
            words, active = self._words(who, language), self.studio.line.active(who.name)
            bars = results.progress(words, self.studio.line, active)
            if bars != shown:
                yield {p["progress"]: bars, p["cancel"]: gr.update(visible=len(active) > 1)}
                shown = bars
            await asyncio.sleep(_GLANCE)
        words = self._words(who, language)
        idle = not self.studio.line.active()
        yield self.overview(words, who) | {p["notice"]: outcome(words, job, idle=idle)}

    def overview(self, words: Texts, who: Visitor) -> Update:
        """The visitor's jobs and songs, and the service's state."""
        p, active = self.parts.made, self.studio.line.active(who.name)
        return {
            p["progress"]: results.progress(words, self.studio.line, active),
            p["cancel"]: gr.update(visible=len(active) > 1),
            p["songs"]: results.songs(words, self.studio.store.list(who.name)),
            p["service_status"]: service.status(self.studio, words, self.studio.choice.device),
        }

    def _words(self, who: Visitor, language: str) -> Texts:
        return texts(self._spoken.get(who.name, language))


def outcome(words: Texts, job: Job, *, idle: bool = True) -> str:
    """How a job ended, as a notice.

    Args:
        words: of the visitor.
        job: that has ended.
        idle: whether nothing else is to be done.
    """
    if job.state == CANCELLED:
        what = results.job_title(words, job)
        told = words("done.cancelled", what=what)
        free = words("done.free") if idle else ""
        return results.notice(words, f"{told} {free}".strip())
    if job.state == DONE:
        songs = job.result if isinstance(job.result, list) else []
        made = words(f"done.{job.kind}", count=len(songs))
        return results.notice(words, made, link=songs[0] if job.kind in ("song", "align") else "")
    return results.notice(words, job.error or "", error=True)
