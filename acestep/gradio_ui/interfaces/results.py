"""Progress, notices and songs as HTML; everything that a visitor wrote is escaped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from acestep.alignment.lyric_files import LyricLine
from acestep.gradio_ui.jobs import RUNNING, Job, Line
from acestep.gradio_ui.store import StoredSong
from acestep.gradio_ui.texts import Texts

_STAGES = ("loading", "step", "planning")
_HIDDEN = ("instruction", "audio_codes", "planned")


def title(words: Texts) -> str:
    """The page's heading, after a way past it for the keyboard."""
    skip = f'<a class="skip" href="#acestep-prompt">{escape(words("page.skip"))}</a>'
    tagline = escape(words("page.tagline"))
    return f"{skip}<h1>{escape(words('page.title'))}</h1><p>{tagline}</p>"


def heading(words: Texts) -> str:
    """The form's heading."""
    return f"<h2>{escape(words('make.heading'))}</h2>"


def notice(words: Texts, text: str, *, error: bool = False) -> str:
    """A sentence where the person looks; screen readers read it at once."""
    if not text:
        return '<div class="notice" role="status"></div>'
    if error:
        lead = escape(words("error.lead"))
        return f'<div class="notice error" role="alert"><b>{lead}</b> {escape(words.problem(text))}</div>'
    return f'<div class="notice" role="status">{escape(text)}</div>'


def progress(words: Texts, line: Line, jobs: Sequence[Job]) -> str:
    """A bar for each of a visitor's jobs, with its stage, the time left or its place."""
    bars = "".join(_bar(words, line, job) for job in jobs)
    return f'<div class="jobs">{bars}</div>'


def _bar(words: Texts, line: Line, job: Job) -> str:
    name = words(f"progress.kind.{job.kind}")
    title = f"{name}: {job.title}" if job.title else name
    if job.state == RUNNING:
        left = job.seconds_left
        detail = stage(words, job.stage)
        if left is not None:
            detail += " · " + words("progress.left", seconds=math.ceil(left))
        percent = round(job.fraction * 100)
        bar = f'<progress max="100" value="{percent}" aria-label="{escape(title)}"></progress>'
    else:
        place = line.place(job)
        detail = words("progress.place", count=place) if place else words("progress.next")
        bar = f'<progress aria-label="{escape(title)}"></progress>'
    return f'<div class="job"><b>{escape(title)}</b>{bar}<span>{escape(detail)}</span></div>'


def stage(words: Texts, text: str) -> str:
    """A stage of the models' own report in the page's language."""
    for name in _STAGES:
        if text.startswith(name):
            what = text.removeprefix(name).removeprefix(", token").strip()
            return words(f"stage.{name}", what=what)
    return words.get(f"stage.{text}") or words("stage.other")


def songs(words: Texts, kept: Sequence[StoredSong]) -> str:
    """A visitor's songs, newest first."""
    head = f'<h2 id="songs-heading">{escape(words("songs.heading"))}</h2>'
    if not kept:
        return f'{head}<p class="hint">{escape(words("songs.none"))}</p>'
    cards = "".join(_card(words, song) for song in kept)
    return f'{head}<div class="songs">{cards}</div>'


def wave(peaks: Sequence[float]) -> str:
    """A waveform that takes the colour of its surroundings."""
    top = " ".join(f"L{x} {50 - 48 * peak:.1f}" for x, peak in enumerate(peaks))
    low = " ".join(f"L{x} {50 + 48 * peak:.1f}" for x, peak in reversed(list(enumerate(peaks))))
    return (
        f'<svg viewBox="0 0 {max(len(peaks) - 1, 1)} 100" preserveAspectRatio="none" '
        f'aria-hidden="true"><path fill="currentColor" d="M0 50 {top} {low} Z"/></svg>'
    )


def _card(words: Texts, song: StoredSong) -> str:
    title, base = escape(song.title), f"songs/{song.id}"
    meta = words(
        "song.meta",
        seconds=f"{song.seconds:.1f}",
        seed=song.seed,
        checkpoint=song.made.get("checkpoint", "?"),
        device=song.made.get("device", "?"),
    )
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(song.created))
    warnings = "".join(f'<p class="hint">{escape(text)}</p>' for text in song.warnings)
    return (
        f'<article class="song" data-song="{song.id}" aria-labelledby="t-{song.id}">'
        f'<h3 id="t-{song.id}">{title}</h3>'
        f'<p class="meta">{escape(meta)} · <time>{when}</time></p>{warnings}'
        f'<div class="wave" role="slider" tabindex="0" aria-valuemin="0" aria-valuenow="0" '
        f'aria-valuemax="{song.seconds:.2f}" data-seconds="{song.seconds:.3f}" '
        f'aria-label="{escape(words("song.wave", title=song.title))}">{wave(song.peaks)}'
        "</div>"
        f'<audio controls preload="metadata" src="{base}/{song.audio}" '
        f'aria-label="{escape(words("song.player", title=song.title))}"></audio>'
        f"{_lyrics(words, song)}"
        f"{_folded(words('song.spectrogram'), _picture(base, 'spectrogram.png', words('song.spectrogram')))}"
        f"{_score(words, song, base)}"
        f"{_folded(words('song.parameters'), _parameters(song))}"
        f"{_actions(words, song, base)}</article>"
    )


def _lyrics(words: Texts, song: StoredSong) -> str:
    if not song.lines:
        return ""
    items = "".join(
        f'<li{_tag(text)} data-start="{start:.3f}" data-end="{end:.3f}"><button type="button" '
        f'data-seek="{start:.3f}">{escape(text)}</button></li>'
        for start, end, text in song.lines
    )
    return f'<ol class="lyrics" aria-label="{escape(words("song.lyrics"))}">{items}</ol>'


def _tag(text: str) -> str:
    return ' class="tag"' if LyricLine(text, 0, 0).is_tag else ""


def _score(words: Texts, song: StoredSong, base: str) -> str:
    if song.score is None:
        return ""
    figures = ", ".join(
        f"{escape(words(f'song.score.{name}'))} {song.score[name]:.3f}"
        for name in ("coverage", "monotonicity", "confidence")
    )
    head = words("song.score", score=f"{song.score['lyrics_score']:.4f}")
    body = f"<p>{figures}</p>{_picture(base, 'alignment.png', words('song.plot'))}"
    return _folded(head, body)


def _parameters(song: StoredSong) -> str:
    shown = {k: v for k, v in song.made.items() if k not in _HIDDEN}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd>"
                   for name, value in shown.items())  # fmt: skip
    return f"<dl>{rows}</dl>"


def _actions(words: Texts, song: StoredSong, base: str) -> str:
    kind = song.audio.rpartition(".")[2].upper()
    labels = {
        song.audio: f"{words('song.download')} {kind}",
        "song.lrc": words("song.download.lrc"),
        "song.json": words("song.download.json"),
    }
    stem = "".join(c if c.isalnum() else "-" for c in song.title)[:40].strip("-") or "song"
    links = "".join(
        f'<a class="action" href="{base}/{name}" '
        f'download="{escape(stem)}.{name.rpartition(".")[2]}">{escape(label)}</a>'
        for name, label in labels.items()
        if name in song.files
    )
    buttons = "".join(
        f'<button type="button" class="action" data-action="{action}" data-id="{song.id}"'
        f"{sure}>{escape(words(f'song.{action}'))}</button>"
        for action, sure in (
            ("again", ""),
            ("use", ""),
            ("delete", f' data-sure="{escape(words("song.delete.sure"))}"'),
        )
    )
    return f'<div class="actions">{buttons}{links}</div>'


def _folded(head: str, body: str) -> str:
    return f"<details><summary>{escape(head)}</summary>{body}</details>"


def _picture(base: str, name: str, alt: str) -> str:
    return f'<img loading="lazy" src="{base}/{name}" alt="{escape(alt)}">'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
