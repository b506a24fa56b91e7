"""The source of a cover or repaint: an upload or a song, seen as a waveform with a range."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.errors import RequestError
from acestep.gradio_ui import pictures, uploads
from acestep.gradio_ui.interfaces import results
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.store import StoredSong
from acestep.gradio_ui.studio import Studio, Visitor
from acestep.gradio_ui.texts import Texts, texts

_REMEMBERED = 64

Update = dict[Any, Any]
Seen = tuple[list[float], float, str]


class SourceEvents:
    """Reactions to choosing audio to work from.

    Args:
        parts: the page's components.
        studio: for the uploads' folder and limits.
        visitor: tells who sent a request.
    """

    def __init__(
        self, parts: Parts, studio: Studio, visitor: Callable[[gr.Request], Visitor]
    ) -> None:
        self.parts, self.studio, self.visitor = parts, studio, visitor
        # What was read of an upload, so that it can be shown again.
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    def wire(self, now: dict[str, Any]) -> None:
        """Connect the components; `now` are settings for events."""
        p, pick = self.parts.made, self.parts.pick
        words = p["page_language"]
        chosen = pick("source_wave", "source_song", "source_file", "clear_source")
        ranges = pick("repaint_start", "repaint_end")
        p["source_file"].upload(
            self.uploaded,
            [words, *pick("source_file", "task")],
            [*chosen, *ranges, *pick("notice", "task")],
            concurrency_limit=2,
            **now,
        )
        p["clear_source"].click(self.cleared, [words], [*chosen, *ranges], **now)
        p["source_wave"].select(self.ranged, None, ranges, **now)
        reference = pick("reference_file", "reference_name", "clear_reference")
        p["reference_file"].upload(
            self._refer, [words, p["reference_file"]], [*reference, p["notice"]],
            concurrency_limit=2, **now,
        )  # fmt: skip
        p["clear_reference"].click(self._unreferred, [words], reference, **now)

    async def uploaded(self, language: str, file: str, task: str) -> Update:
        """Read an upload, and show its waveform or why it cannot be used."""
        words, p = texts(language), self.parts.made
        try:
            peaks, seconds, name = await asyncio.to_thread(self._read, file)
        except RequestError as error:
            return {
                **self.cleared(language),
                p["notice"]: results.notice(words, str(error), error=True),
            }
        return {
            **self._whole(),
            p["notice"]: results.notice(words, ""),
            p["source_wave"]: wave(words, name, seconds, peaks, ranged=task in _RANGED),
            p["source_song"]: "",
            p["clear_source"]: gr.update(visible=True),
            p["task"]: "repaint" if task == "text2music" else task,
        }

    def cleared(self, language: str) -> Update:
        """The source was taken away."""
        p = self.parts.made
        return {
            **self._whole(),
            p["source_wave"]: none(texts(language)),
            p["source_song"]: "",
            p["source_file"]: None,
            p["clear_source"]: gr.update(visible=False),
        }

    def ranged(self, event: gr.EventData) -> tuple[float, float]:
        """A range was drawn on the waveform."""
        data = event._data if isinstance(event._data, dict) else {}
        start, end = (max(float(data.get(name) or 0), 0.0) for name in ("start", "end"))
        return round(start, 2), round(end, 2)

    def use(self, words: Texts, song: StoredSong) -> Update:
        """A song of the visitor's becomes the source."""
        p = self.parts.made
        return {
            **self._whole(),
            p["source_wave"]: wave(words, song.title, song.seconds, song.peaks),
            p["source_song"]: song.id,
            p["source_file"]: None,
            p["clear_source"]: gr.update(visible=True),
            p["task"]: "repaint",
            p["notice"]: results.notice(words, words("done.source")),
        }

    def shown(self, words: Texts, who: Visitor, file: str | None, song_id: str, task: str) -> str:
        """The source that is chosen, told in another language or after a reload."""
        ranged = task in _RANGED
        if song := self.studio.store.get(who.name, song_id):
            return wave(words, song.title, song.seconds, song.peaks, ranged=ranged)
        if file and (seen := self._seen.get(_key(file))):
            peaks, seconds, name = seen
            return wave(words, name, seconds, peaks, ranged=ranged)
        return none(words)

    def referred(self, words: Texts, file: str | None) -> str:
        """The file whose timbre is followed, told in another language."""
        seen = self._seen.get(_key(file)) if file else None
        return reference(words, seen[2] if seen else None)

    async def _refer(self, language: str, file: str) -> Update:
        words, p = texts(language), self.parts.made
        try:
            _, _, name = await asyncio.to_thread(self._read, file)
        except RequestError as error:
            return {
                **self._unreferred(language),
                p["notice"]: results.notice(words, str(error), error=True),
            }
        return {
            p["reference_name"]: reference(words, name),
            p["clear_reference"]: gr.update(visible=True),
            p["notice"]: results.notice(words, ""),
        }

    def _unreferred(self, language: str) -> Update:
        p = self.parts.made
        return {
            p["reference_file"]: None,
            p["reference_name"]: reference(texts(language), None),
            p["clear_reference"]: gr.update(visible=False),
        }

    def _whole(self) -> Update:
        """Another source has another range."""
        return dict.fromkeys(self.parts.pick("repaint_start", "repaint_end"), 0)

    def _read(self, file: str) -> Seen:
        import soundfile

        path = uploads.within(file, self.studio.uploads)
        if seen := self._seen.get(_key(path)):
            return seen
        with self.studio.store.work_folder() as folder:
            plain = uploads.decoded(path, folder / "source.wav", self.studio.limits)
            samples, rate = soundfile.read(plain, dtype="float32", always_2d=True)
        seen = (pictures.peaks(samples.T), len(samples) / rate, path.name)
        self._seen[_key(path)] = seen
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return seen


_RANGED = ("text2music", "repaint", "lego")


def _key(file: str | Path) -> str:
    """A file as it is now."""
    path = Path(file).resolve()
    return f"{path} {path.stat().st_mtime_ns}" if path.is_file() else ""


def none(words: Texts) -> str:
    """What stands in place of the waveform while there is no source."""
    return f'<p class="hint">{escape(words("source.none"))}</p>'


def reference(words: Texts, name: str | None) -> str:
    """Which file's timbre is followed."""
    text = words("reference.none") if name is None else words("reference.chosen", name=name)
    return f'<p class="hint">{escape(text)}</p>'


def wave(
    words: Texts, name: str, seconds: float, peaks: list[float], *, ranged: bool = True
) -> str:
    """The source's waveform, on which a range can be drawn where the task has one."""
    chosen = words("source.chosen", name=name, seconds=f"{seconds:.1f}")
    hint = f'<p class="hint">{escape(words("source.range"))}</p>' if ranged else ""
    kind = "wave range" if ranged else "wave still"
    return (
        f"<p>{escape(chosen)}</p>"
        f'<div class="{kind}" data-seconds="{seconds:.3f}" role="img" '
        f'aria-label="{escape(words("source.wave"))}">{results.wave(peaks)}'
        f'<i class="picked" hidden></i></div>{hint}'
    )
