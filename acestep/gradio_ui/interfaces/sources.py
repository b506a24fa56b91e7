"""The source of a cover or repaint: an upload or a song, seen as a waveform with a range."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from acestep.errors import RequestError
from acestep.gradio_ui import pictures, uploads
from acestep.gradio_ui.interfaces import results
from acestep.gradio_ui.interfaces.parts import Parts
from acestep.gradio_ui.store import StoredSong
from acestep.gradio_ui.studio import Studio, Visitor
from acestep.gradio_ui.texts import Texts, texts

Update = dict[Any, Any]


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

    def wire(self, now: dict[str, Any]) -> None:
        """Connect the components; `now` are settings for events."""
        p, pick = self.parts.made, self.parts.pick
        words, shown = p["page_language"], pick("notice", "source_wave", "source_song", "task")
        p["source_file"].upload(
            self.uploaded, [words, *pick("source_file", "task")], shown, concurrency_limit=2, **now
        )
        p["source_file"].clear(self.cleared, [words], pick("source_wave", "source_song"), **now)
        p["source_wave"].select(self.ranged, None, pick("repaint_start", "repaint_end"), **now)

    async def uploaded(self, language: str, file: str, task: str) -> Update:
        """Read an upload, and show its waveform or why it cannot be used."""
        words, p = texts(language), self.parts.made
        try:
            peaks, seconds, name = await asyncio.to_thread(self._read, file)
        except RequestError as error:
            return {
                p["notice"]: results.notice(words, str(error), error=True),
                p["source_wave"]: none(words),
                p["source_song"]: "",
            }
        return {
            p["notice"]: results.notice(words, ""),
            p["source_wave"]: wave(words, name, seconds, peaks),
            p["source_song"]: "",
            p["task"]: "repaint" if task == "text2music" else task,
        }

    def cleared(self, language: str) -> tuple[str, str]:
        """The upload was taken away."""
        return none(texts(language)), ""

    def ranged(self, event: gr.EventData) -> tuple[float, float]:
        """A range was drawn on the waveform."""
        data = event._data if isinstance(event._data, dict) else {}
        start, end = (max(float(data.get(name) or 0), 0.0) for name in ("start", "end"))
        return round(start, 2), round(end, 2)

    def use(self, words: Texts, song: StoredSong) -> Update:
        """A song of the visitor's becomes the source."""
        p = self.parts.made
        return {
            p["source"]: gr.update(open=True),
            p["source_wave"]: wave(words, song.title, song.seconds, song.peaks),
            p["source_song"]: song.id,
            p["source_file"]: None,
            p["task"]: "repaint",
            p["notice"]: results.notice(words, words("done.source")),
        }

    def _read(self, file: str) -> tuple[list[float], float, str]:
        import soundfile

        path = uploads.within(file, self.studio.uploads)
        with self.studio.store.work_folder() as folder:
            plain = uploads.decoded(path, folder / "source.wav", self.studio.limits)
            samples, rate = soundfile.read(plain, dtype="float32", always_2d=True)
        return pictures.peaks(samples.T), len(samples) / rate, path.name


def none(words: Texts) -> str:
    """What stands in place of the waveform while there is no source."""
    return f'<p class="hint">{escape(words("source.none"))}</p>'


def wave(words: Texts, name: str, seconds: float, peaks: list[float]) -> str:
    """The source's waveform, on which a range can be drawn."""
    chosen = words("source.chosen", name=name, seconds=f"{seconds:.1f}")
    return (
        f"<p>{escape(chosen)}</p>"
        f'<div class="wave range" data-seconds="{seconds:.3f}" role="img" '
        f'aria-label="{escape(words("source.wave"))}">{results.wave(peaks)}'
        f'<i class="picked" hidden></i></div>'
        f'<p class="hint">{escape(words("source.range"))}</p>'
    )
