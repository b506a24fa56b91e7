"""The form of the page, as plain values: what may stand in it and what it asks the models."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.errors import RequestError
from acestep.gradio_ui.limits import Limits
from acestep.song.formats import FORMATS, encoding
from acestep.song.loudness import check as check_loudness
from acestep.song.request import DEFAULT_DURATION, MAX_SEED, SOURCE_TASKS

if TYPE_CHECKING:
    from acestep.song.params import GenerationConfig, GenerationParams

_TITLE = 60
_MOST_STEPS = 100
_MOST_SONGS = 8


@dataclass(frozen=True)
class SongRequest:
    """One press of the button.

    Attributes:
        prompt, lyrics, instrumental, language: what to sing about.
        bpm, key, time_signature: 0 or empty leaves them open.
        duration: seconds.
        seed: -1 draws one.
        batch: songs at once.
        task: text2music, or one that works on `source_file` or `source_song`.
        source_file, reference_file: paths of uploads, or None.
        source_song: id of one of the visitor's songs, or empty.
        repaint_start, repaint_end: seconds; an end of 0 is the end of the source.
        cover_strength: share of the source that a cover keeps.
        track: for extract and lego.
        thinking: plan with the language model first.
        steps, guidance, shift, method: of the diffusion.
        audio_format: one of `formats.FORMATS`.
        bit_depth, bitrate: bits a sample and kbit/s; 0 for the format's own.
        loudness: LUFS; 0 leaves songs as they are.
    """

    prompt: str = ""
    lyrics: str = ""
    instrumental: bool = False
    language: str = "unknown"
    bpm: int = 0
    key: str = ""
    time_signature: str = ""
    duration: float = DEFAULT_DURATION
    seed: int = -1
    batch: int = 1
    task: str = "text2music"
    source_file: str | None = None
    source_song: str = ""
    repaint_start: float = 0.0
    repaint_end: float = 0.0
    cover_strength: float = 1.0
    track: str = ""
    reference_file: str | None = None
    thinking: bool = False
    steps: int = 8
    guidance: float = 7.0
    shift: float = 1.0
    method: str = "ode"
    audio_format: str = "flac"
    bit_depth: int = 0
    bitrate: int = 0
    loudness: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SongRequest:
        """A request from form values, which may be of any type and missing.

        Raises:
            RequestError: a value is of the wrong kind.
        """
        made: dict[str, Any] = {}
        for field in fields(cls):
            value = values.get(field.name)
            if value is None or value == "":
                continue
            made[field.name] = _of_kind(field.name, str(field.type), value)
        return cls(**made)

    @property
    def title(self) -> str:
        """The prompt in a line, shortened."""
        text = " ".join((self.prompt or self.task).split())
        return text if len(text) <= _TITLE else text[: _TITLE - 1].rstrip() + "…"

    def checked(self, limits: Limits, *, prompt_needed: bool = True) -> SongRequest:
        """This request without unprintable characters, known to be worth a place in the line.

        What depends on the checkpoint is checked when its turn comes.

        Args:
            limits: of the texts.
            prompt_needed: whether an empty prompt is an error.

        Raises:
            RequestError: a value is missing or out of range; one sentence.
        """
        request = replace(self, prompt=cleaned(self.prompt), lyrics=cleaned(self.lyrics))
        for name, most in (("prompt", limits.prompt_chars), ("lyrics", limits.lyrics_chars)):
            size = len(getattr(request, name))
            if size > most:
                raise RequestError(
                    f"the {name} has {size} characters; the most is {most}: shorten the text"
                )
        bounds = (("number of steps", self.steps, 1, _MOST_STEPS),
                  ("batch size", self.batch, 1, _MOST_SONGS),
                  ("seed", self.seed, -1, MAX_SEED))  # fmt: skip
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise RequestError(f"{name} {value} is out of range; expected {low} to {high}")
        if self.audio_format not in FORMATS:
            raise RequestError(f"unknown format; choose from {', '.join(FORMATS)}")
        encoding(self.audio_format, self.bit_depth or None, self.bitrate or None)
        check_loudness(self.loudness or None)
        if self.task in SOURCE_TASKS and not (self.source_file or self.source_song):
            raise RequestError(f"the task '{self.task}' works on audio; choose a source first")
        request._check_values(prompt_needed)
        return request

    def params(self, **sound: Path) -> tuple[GenerationParams, GenerationConfig]:
        """The request in the words of the Python API.

        Args:
            sound: `src_audio` and `reference_audio`, where given.
        """
        from acestep.song.params import GenerationConfig, GenerationParams

        source = sound.get("src_audio") if self.task in SOURCE_TASKS else None
        params = GenerationParams(
            task_type=self.task,
            reference_audio=sound.get("reference_audio"),
            src_audio=source,
            caption=self.prompt,
            lyrics=self.lyrics,
            instrumental=self.instrumental,
            vocal_language=self.language,
            bpm=self.bpm or None,
            keyscale=self.key,
            timesignature=self.time_signature,
            duration=self.duration,
            inference_steps=self.steps,
            seed=self.seed,
            guidance_scale=self.guidance,
            shift=self.shift,
            infer_method=self.method,
            repainting_start=self.repaint_start,
            repainting_end=self.repaint_end or -1,
            audio_cover_strength=self.cover_strength,
            thinking=self.thinking,
            track_name=self.track or None,
        )
        config = GenerationConfig(
            batch_size=self.batch,
            use_random_seed=False,
            audio_format=self.audio_format,
            audio_bit_depth=self.bit_depth or None,
            audio_bitrate=self.bitrate or None,
            audio_loudness=self.loudness or None,
        )
        return params, config

    def metadata(self) -> dict[str, Any]:
        """What the visitor has settled, under the planner's names."""
        known = {
            "bpm": self.bpm,
            "keyscale": self.key,
            "timesignature": self.time_signature,
            "language": "" if self.language == "unknown" else self.language,
        }
        return {name: value for name, value in known.items() if value}

    def remembered(self) -> dict[str, Any]:
        """The values to fill the form with again; uploads do not last that long."""
        kept = asdict(self)
        for name in ("source_file", "reference_file"):
            kept.pop(name)
        return kept

    def _check_values(self, prompt_needed: bool) -> None:
        """What the models' own checks say, before the request has waited in the line."""
        import acestep.song.request as requests

        plain = requests.Request(
            self.prompt, (max(self.seed, 0),), self.lyrics,
            duration=None if self.task in SOURCE_TASKS else self.duration,
            bpm=self.bpm or None, key=self.key, time_signature=self.time_signature,
            language=self.language, steps=self.steps, guidance_scale=self.guidance,
            shift=self.shift, infer_method=self.method, cover_strength=self.cover_strength,
            task="text2music" if prompt_needed and self.task != "extract" else "extract",
        )  # fmt: skip
        plain._check_text()
        plain._check_numbers()
        start, end = self.repaint_start, self.repaint_end
        if not (math.isfinite(start) and math.isfinite(end) and start >= 0 and end >= 0):
            raise RequestError("the repaint range must lie within the source")
        if self.task == "repaint" and 0 < end <= start:
            raise RequestError(f"the repaint range {start:g}:{end:g} ends before it starts")


def _of_kind(name: str, kind: str, value: Any) -> Any:
    """A form's value as the type of its field."""
    try:
        if kind == "bool":
            return bool(value)
        if kind in ("int", "float"):
            number = float(value)
            if not math.isfinite(number) or (kind == "int" and number != int(number)):
                raise ValueError
            return int(value) if kind == "int" else number
        if not isinstance(value, str):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        shown = str(value)[:40]
        wanted = {"int": "a whole number", "float": "a number"}.get(kind, "text")
        raise RequestError(f"{name.replace('_', ' ')} '{shown}' is not {wanted}") from None
    return value


def cleaned(text: str) -> str:
    """Text without control characters, in composed form; line breaks stay."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    kept = (
        " " if char == "\t" else char
        for char in text
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Co", "Cn")
    )
    return "".join(kept).strip("\n")
