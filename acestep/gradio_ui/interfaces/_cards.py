"""Songs as HTML, a card each; everything that a visitor wrote is escaped."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from acestep.alignment.lyric_files import LyricLine
from acestep.gradio_ui import downloads
from acestep.gradio_ui.finishing import WORDLESS
from acestep.gradio_ui.store import StoredSong
from acestep.gradio_ui.texts import Texts

_HIDDEN = ("instruction", "audio_codes", "planned")
# The players of so many songs learn their length at once; the others when they are pressed.
_PRELOADED = 6


def songs(words: Texts, kept: Sequence[StoredSong]) -> str:
    """A visitor's songs, newest first."""
    if not kept:
        return f'<p class="hint">{escape(words("songs.none"))}</p>'
    cards = "".join(_card(words, song, n < _PRELOADED) for n, song in enumerate(kept))
    none = f'<p class="hint" id="no-match" hidden>{escape(words("songs.no_match"))}</p>'
    return f'<div class="songs">{cards}</div>{none}'


def wave(peaks: Sequence[float]) -> str:
    """A waveform that takes the colour of its surroundings."""
    top = " ".join(f"L{x} {50 - 48 * peak:.1f}" for x, peak in enumerate(peaks))
    low = " ".join(f"L{x} {50 + 48 * peak:.1f}" for x, peak in reversed(list(enumerate(peaks))))
    return (
        f'<svg viewBox="0 0 {max(len(peaks) - 1, 1)} 100" preserveAspectRatio="none" '
        f'aria-hidden="true"><path fill="currentColor" d="M0 50 {top} {low} Z"/></svg>'
    )


def _card(words: Texts, song: StoredSong, preloaded: bool) -> str:
    title, base = escape(song.title), f"songs/{song.id}"
    warnings = "".join(
        f'<p class="hint">{escape(words.problem(text))}</p>'
        for text in song.warnings
        # Here such a song has no times: that they mean nothing need not be said.
        if not (song.wordless and text == WORDLESS)
    )
    preload = "metadata" if preloaded else "none"
    return (
        f'<article class="song" id="song-{song.id}" data-song="{song.id}" '
        f'data-favourite="{"yes" if song.favourite else "no"}" '
        f'data-find="{escape(_findable(song))}" aria-labelledby="t-{song.id}">'
        f'<div class="head">{_star(words, song)}'
        f'<h3 id="t-{song.id}">{title}</h3></div>'
        f'<p class="meta">{escape(_meta(words, song))} · '
        f"<time>{time.strftime('%Y-%m-%d %H:%M', time.localtime(song.created))}</time></p>{warnings}"
        f'<div class="wave" role="slider" tabindex="0" aria-valuemin="0" aria-valuenow="0" '
        f'aria-valuemax="{song.seconds:.2f}" data-seconds="{song.seconds:.3f}" '
        f'aria-label="{escape(words("song.wave", title=song.title))}">{wave(song.peaks)}'
        "</div>"
        f'<audio controls preload="{preload}" src="{base}/{song.audio}" '
        f'aria-label="{escape(words("song.player", title=song.title))}"></audio>'
        f"{_lyrics(words, song)}{_actions(words, song, base)}{_details(words, song, base)}</article>"
    )


def _meta(words: Texts, song: StoredSong) -> str:
    fields = {
        "seconds": f"{song.seconds:.1f}",
        "checkpoint": song.made.get("checkpoint", "?"),
        "device": song.made.get("device", "?"),
    }
    if song.kind == "align":
        return words("song.meta.align", **fields)
    return words("song.meta", seed=song.seed, **fields)


def _findable(song: StoredSong) -> str:
    """The words that a search looks at."""
    told = (song.title, song.idea, song.made.get("caption"), song.made.get("lyrics"), song.seed)
    return " ".join(str(part) for part in told if part).casefold()


def _star(words: Texts, song: StoredSong) -> str:
    """The button that marks a favourite."""
    label = escape(words("song.favourite", title=song.title))
    pressed = "true" if song.favourite else "false"
    return (
        f'<button type="button" class="star" data-action="favourite" data-id="{song.id}" '
        f'aria-pressed="{pressed}" aria-label="{label}">{"★" if song.favourite else "☆"}</button>'
    )


def _lyrics(words: Texts, song: StoredSong) -> str:
    """The lyrics in time; of a song by a model that cannot sing, they are words and no more."""
    if not song.lines:
        return ""
    label = escape(words("song.lyrics"))
    if song.wordless:
        text = "\n".join(text for _, _, text in song.lines)
        return _folded("words", words("song.words"), f'<p class="words">{escape(text)}</p>')
    items = "".join(
        f'<li{_tag(text)} data-start="{start:.3f}" data-end="{end:.3f}"><button type="button" '
        f'data-seek="{start:.3f}">{escape(text)}</button></li>'
        for start, end, text in song.lines
    )
    return f'<ol class="lyrics" aria-label="{label}">{items}</ol>'


def _tag(text: str) -> str:
    return ' class="tag"' if LyricLine(text, 0, 0).is_tag else ""


def _details(words: Texts, song: StoredSong, base: str) -> str:
    """What is looked at now and then, folded away."""
    score = _score(words, song, base)
    picture = _picture(base, "spectrogram.png", words("song.spectrogram"))
    used = str(song.made.get("caption") or "")
    said = song.idea or str(song.asked.get("prompt") or "")
    rewritten = ""
    if said and used and used != said:
        rewritten = "".join(
            f"<dt>{escape(words(f'song.prompt.{name}'))}</dt><dd>{escape(text)}</dd>"
            for name, text in (("asked", said), ("used", used))
        )
        rewritten = f"<dl>{rewritten}</dl>"
    body = f"{rewritten}{picture}{_parameters(words, song)}"
    return f"{score}{_folded('details', words('song.details'), body)}"


def _score(words: Texts, song: StoredSong, base: str) -> str:
    if song.score is None or song.wordless:
        return ""
    figures = ", ".join(
        f"{escape(words(f'song.score.{name}'))} {song.score[name]:.3f}"
        for name in ("coverage", "monotonicity", "confidence")
    )
    head = words("song.score", score=f"{song.score['lyrics_score']:.4f}")
    body = f"<p>{figures}</p>{_picture(base, 'alignment.png', words('song.plot'))}"
    return _folded("score", head, body)


def _parameters(words: Texts, song: StoredSong) -> str:
    shown = {k: v for k, v in song.made.items() if k not in _HIDDEN}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd>"
                   for name, value in shown.items())  # fmt: skip
    return f"<h4>{escape(words('song.parameters'))}</h4><dl>{rows}</dl>"


def _actions(words: Texts, song: StoredSong, base: str) -> str:
    made = song.kind == "song"
    sure = escape(words("song.delete.sure"))
    buttons = [
        *(_button(words, song, name) for name in ("again", "vary") if made),
        _button(words, song, "use"),
        _downloads(words, song, base),
        _button(words, song, "rename", f' data-label="{escape(words("song.rename.label"))}"'),
        _button(words, song, "delete", f' data-sure="{sure}"'),
    ]
    return f'<div class="actions">{"".join(buttons)}</div>'


def _button(words: Texts, song: StoredSong, action: str, more: str = "") -> str:
    return (
        f'<button type="button" class="action" data-action="{action}" data-id="{song.id}"'
        f"{more}>{escape(words(f'song.{action}'))}</button>"
    )


def _downloads(words: Texts, song: StoredSong, base: str) -> str:
    """The song in every kind of file, and what else there is of it."""
    stem = "".join(c if c.isalnum() else "-" for c in song.title)[:40].strip("-") or "song"
    first = song.audio.rpartition(".")[2]
    kinds = [first, *(kind for kind in downloads.kinds() if kind != first)]
    offered = {f"song.{kind}": kind.upper() for kind in kinds}
    if not song.wordless:
        offered["song.lrc"] = words("song.download.lrc")
    offered["song.json"] = words("song.download.json")
    links = "".join(
        f'<li><a href="{base}/{name}" download="{escape(stem)}.{name.rpartition(".")[2]}">'
        f"{escape(label)}</a></li>"
        for name, label in offered.items()
        if name.removeprefix("song.") in kinds or name in song.files
    )
    head = escape(words("song.download"))
    return (
        f'<details class="menu" data-fold="menu"><summary class="action">{head}</summary>'
        f"<ul>{links}</ul></details>"
    )


def _folded(name: str, head: str, body: str) -> str:
    return f'<details data-fold="{name}"><summary>{escape(head)}</summary>{body}</details>'


def _picture(base: str, name: str, alt: str) -> str:
    return f'<img loading="lazy" src="{base}/{name}" alt="{escape(alt)}">'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
