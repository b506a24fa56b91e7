"""Progress, notices and songs as HTML; everything that a visitor wrote is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from acestep.gradio_ui.interfaces._cards import songs, wave
from acestep.gradio_ui.jobs import RUNNING, Job, Line
from acestep.gradio_ui.texts import Texts

_COMMAND = "acestep download turbo"
_STAGES = ("loading", "step", "planning")

__all__ = [
    "banner", "heading", "job_title", "model_note", "notice", "progress", "songs", "songs_heading", "stage",
    "title", "wave",
]  # fmt: skip


def title(words: Texts) -> str:
    """The page's heading, after a way past it for the keyboard."""
    skip = f'<a class="skip" href="#acestep-form">{escape(words("page.skip"))}</a>'
    tagline = escape(words("page.tagline"))
    return f"{skip}<h1>{escape(words('page.title'))}</h1><p>{tagline}</p>"


def heading(words: Texts) -> str:
    """The form's heading."""
    return f"<h2>{escape(words('make.heading'))}</h2>"


def songs_heading(words: Texts) -> str:
    """The heading of a visitor's songs."""
    return f'<h2 id="songs-heading">{escape(words("songs.heading"))}</h2>'


def notice(words: Texts, text: str, *, error: bool = False, link: str = "") -> str:
    """A sentence where the person looks; screen readers read it at once.

    Args:
        words: of the visitor.
        text: the sentence.
        error: whether it says what went wrong.
        link: id of a song to lead to.
    """
    if not text:
        return '<div class="notice" role="status"></div>'
    if error:
        lead = escape(words("error.lead"))
        return f'<div class="notice error" role="alert"><b>{lead}</b> {escape(words.problem(text))}</div>'
    there = f' <a href="#song-{link}">{escape(words("done.listen"))}</a>' if link else ""
    return f'<div class="notice" role="status">{escape(text)}{there}</div>'


def progress(words: Texts, line: Line, jobs: Sequence[Job]) -> str:
    """A bar for each of a visitor's jobs, with its stage, the time left or its place."""
    bars = "".join(_bar(words, line, job) for job in jobs)
    return f'<div class="jobs">{bars}</div>'


def job_title(words: Texts, job: Job) -> str:
    """What a job is, and of which song."""
    name = words(f"progress.kind.{job.kind}")
    return f"{name}: {job.title}" if job.title else name


def _bar(words: Texts, line: Line, job: Job) -> str:
    title = escape(job_title(words, job))
    if job.ending:
        detail, bar = words("progress.ending"), f'<progress aria-label="{title}"></progress>'
    elif job.state == RUNNING:
        detail, bar = _running(words, job, title)
    else:
        place = line.place(job)
        detail = words("progress.place", count=place) if place else words("progress.next")
        bar = f'<progress aria-label="{title}"></progress>'
    cancel = escape(words("progress.cancel"))
    button = (
        f'<button type="button" class="action small" data-cancel="{job.id}" '
        f'aria-label="{cancel}: {title}">{cancel}</button>'
    )
    return (
        f'<div class="job"><b>{title}</b>{button}{bar}'
        f'<span class="detail">{escape(detail)}</span></div>'
    )


def _running(words: Texts, job: Job, title: str) -> tuple[str, str]:
    """What is said of a job that runs, and its bar; one whose end is open has no per cent."""
    detail, left = stage(words, job.stage), job.seconds_left
    if job.course is None or job.course.began is None:
        return detail, f'<progress aria-label="{title}"></progress>'
    percent = round(job.fraction * 100)
    detail = f"{percent} % · {detail}"
    if left is not None:
        detail += " · " + words("progress.left", seconds=math.ceil(left))
    return detail, f'<progress max="100" value="{percent}" aria-label="{title}"></progress>'


def stage(words: Texts, text: str) -> str:
    """A stage of the models' own report in the page's language."""
    if exact := words.get(f"stage.{text}"):
        return exact
    for name in _STAGES:
        if text.startswith(name):
            what = text.removeprefix(name).removeprefix(", token").strip()
            return words(f"stage.{name}", what=what)
    return words("stage.other")


def banner(words: Texts, open_to_strangers: bool) -> str:
    """A warning where whoever reaches the page can use it."""
    if not open_to_strangers:
        return ""
    return f'<p class="banner" role="note">{escape(words("page.open"))}</p>'


def model_note(words: Texts, toy: bool) -> str:
    """What the built-in model is."""
    if not toy:
        return ""
    text = escape(words("model.toy", command=_COMMAND)).replace(
        _COMMAND, f"<code>{_COMMAND}</code>"
    )
    return f'<p class="toy" role="note">{text}</p>'
