"""One request for music: its fields, what is valid, and how it is brought within limits."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acestep.errors import RequestError
from acestep.gpu_config import (
    MAX_DURATION,
    MIN_DURATION,
    GPUConfig,
    check_batch_size_limit,
    check_duration_limit,
)
from acestep.song.defaults import MAX_DISTILLED_TIMES, Defaults

if TYPE_CHECKING:
    import torch

DEFAULT_DURATION = 30.0
"""Seconds of a song when neither the request nor source audio says."""

SAMPLE_RATE = 48000
"""Of all audio that goes in and comes out, Hz."""

FRAMES_PER_SECOND = 25
"""Latent frames of the model in a second of music."""

CODES_PER_SECOND = 5
"""Audio codes of the language model in a second of music."""

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_SONGS = 1000
"""Songs of a batch that anybody may ask for; a memory tier allows fewer."""

BPM_RANGE = (30, 300)
TIME_SIGNATURES = ("2", "3", "4", "6")
_LANGUAGE_CODES = (
    "ar az bg bn ca cs da de el en es fa fi fr he hi hr ht hu id is it ja ko la lt ms ne nl "
    "no pa pl pt ro ru sa sk sr sv sw ta te th tl tr uk ur vi yue zh unknown"
)
LANGUAGES = tuple(_LANGUAGE_CODES.split())
UNKNOWN_LANGUAGE = "unknown"
"""Of vocals: the one that nobody named."""
CODED_TASKS = ("text2music", "cover")
"""What audio codes can be played by."""

SOURCE_TASKS = ("cover", "repaint", "extract", "lego", "complete")
INFER_METHODS = ("ode", "sde")
REPAINT_TASKS = ("repaint", "lego")
REPAINT_MODES = ("conservative", "balanced", "aggressive")
MAX_CROSSFADE = 10.0
"""Seconds of the longest crossfade between a repainted part and the rest."""

_KEY = re.compile(r"[A-G][#b♯♭]? (major|minor)")
_AUDIO_CODE = re.compile(r"<\|audio_code_(\d{1,9})\|>")


@dataclass(frozen=True)
class Planning:
    """What the language model is to add to a request, and how it is to choose its words.

    Attributes:
        codes: make audio codes too, unless the request has some.
        metas, caption, language: whether it may add what is missing, or rewrite the caption.
        temperature: 0 always takes the most probable token.
        guidance_scale: above 1 an unconditional prompt runs beside the other.
        top_k, top_p: tokens to choose from; 0 and 1 for no limit.
        negative_prompt: caption of the unconditional prompt.
        constrained: hold the metadata to their grammar.
        songs_at_once: how many it makes codes for together.
    """

    codes: bool = True
    metas: bool = True
    caption: bool = True
    language: bool = True
    temperature: float = 0.85
    guidance_scale: float = 2.0
    top_k: int = 0
    top_p: float = 0.9
    negative_prompt: str = "NO USER INPUT"
    constrained: bool = True
    songs_at_once: int = 1

    @property
    def asked(self) -> bool:
        """Whether it has anything to do."""
        return self.codes or self.metas or self.caption or self.language


@dataclass(frozen=True)
class Request:
    """What to generate, in the handler's terms.

    Attributes:
        caption: what the music is like.
        lyrics: words with section tags; empty for none.
        seeds: one for each song of the batch.
        duration: seconds, or None when source audio or codes fix it (else the default).
        task: one of the tasks of ACE-Step 1.5.
        src_audio: `[2, samples]` at 48 kHz, for the tasks in `SOURCE_TASKS`.
        reference_audio: `[2, samples]` at 48 kHz, whose timbre to follow.
        audio_codes: semantic codes as text, `<|audio_code_N|>`, five a second.
        song_codes: the same for each song of the batch, in place of `audio_codes`.
        repaint: (start, end) in seconds of the part to renew; an end of None is the end of the
            source. A range may start before the source or end after it, which makes it longer.
        repaint_mode: one of `REPAINT_MODES`: how firmly the rest keeps to the source.
        repaint_strength: 0 to 1, how freely `balanced` renews.
        repaint_latent_crossfade_frames, repaint_wav_crossfade_sec: how softly the renewed part
            joins the rest; None follows from mode and strength.
        use_adg: guide by angles instead of differences (checkpoints that take guidance).
        steps, guidance_scale, shift: of the diffusion; None for the checkpoint's own.
        timesteps: an explicit descending schedule in (0, 1], in place of steps and shift.
        planning: what a language model is to add, where one is loaded.
        planned: whether one has added it.
    """

    caption: str
    seeds: tuple[int, ...]
    lyrics: str = ""
    duration: float | None = None
    bpm: int | None = None
    key: str = ""
    time_signature: str = ""
    language: str = "unknown"
    task: str = "text2music"
    instruction: str | None = None
    track_name: str | None = None
    track_classes: tuple[str, ...] = ()
    src_audio: torch.Tensor | None = field(default=None, repr=False)
    reference_audio: torch.Tensor | None = field(default=None, repr=False)
    audio_codes: str = ""
    song_codes: tuple[str, ...] = field(default=(), repr=False)
    repaint: tuple[float, float | None] = (0.0, None)
    repaint_mode: str = "balanced"
    repaint_strength: float = 0.5
    repaint_latent_crossfade_frames: int | None = None
    repaint_wav_crossfade_sec: float | None = None
    steps: int | None = 8
    guidance_scale: float | None = 7.0
    use_adg: bool = False
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    shift: float | None = 1.0
    infer_method: str = "ode"
    timesteps: tuple[float, ...] | None = None
    cover_strength: float = 1.0
    planning: Planning = Planning()
    planned: bool = False

    @property
    def batch_size(self) -> int:
        """How many songs."""
        return len(self.seeds)

    @property
    def has_codes(self) -> bool:
        """Whether there are audio codes, which then say how long the songs are."""
        return bool(self.audio_codes) or any(self.song_codes)

    @property
    def seconds(self) -> float:
        """How long the songs will be, whoever says so: codes, source audio, duration."""
        if self.has_codes:
            held = max(_coded_seconds(codes) for codes in (*self.song_codes, self.audio_codes))
            return held if self.duration is None else min(held, self.duration)
        if self.src_audio is None or self.task not in SOURCE_TASKS:
            return DEFAULT_DURATION if self.duration is None else self.duration
        given = self.src_audio.shape[-1] / SAMPLE_RATE
        if self.task not in REPAINT_TASKS:
            return given
        start, end = self.repainted
        return max(end, given) - min(start, 0.0)

    @property
    def repainted(self) -> tuple[float, float]:
        """The range to renew, seconds of the source; where it ends is known.

        Raises:
            RequestError: there is no source.
        """
        if self.src_audio is None:
            raise RequestError(f"the task '{self.task}' needs source audio (--source FILE)")
        start, end = self.repaint
        return start, self.src_audio.shape[-1] / SAMPLE_RATE if end is None else end

    def validated(self, tasks: Sequence[str], sample_rate: int = 48000) -> Request:
        """This request, checked against a checkpoint's tasks.

        Raises:
            RequestError: a field is out of its range; the message names field and range.
        """
        self.check_words_and_numbers()
        self._check_task(tasks, sample_rate)
        return self

    def limited(self, config: GPUConfig, lm_initialized: bool) -> tuple[Request, list[str]]:
        """This request within a memory tier, and a warning for each field that was cut."""
        request, warnings = self, []
        if self.src_audio is not None and self.task not in SOURCE_TASKS:
            request = dataclasses.replace(request, src_audio=None)
            warnings.append(
                f"the source audio is left out: {self.task} works without; ask for "
                + " or ".join(SOURCE_TASKS)
            )
        if self.duration is not None:
            within, line = check_duration_limit(self.duration, config, lm_initialized)
            if not within:
                request = dataclasses.replace(
                    request, duration=float(config.max_duration(lm_initialized))
                )
                warnings.append(f"{line}; making {request.duration:g} s")
        within, line = check_batch_size_limit(self.batch_size, config, lm_initialized)
        if not within:
            limit = config.max_batch_size(lm_initialized)
            request = dataclasses.replace(
                request, seeds=self.seeds[:limit], song_codes=self.song_codes[:limit]
            )
            warnings.append(f"{line}; making {limit}")
        return request, warnings

    def resolved(self, defaults: Defaults) -> tuple[Request, list[str]]:
        """This request with the checkpoint's own steps, shift and guidance where it names none,
        and a notice for what the checkpoint was not distilled for.

        Raises:
            RequestError: more timesteps than a distilled checkpoint takes.
        """
        request = dataclasses.replace(
            self,
            steps=defaults.steps if self.steps is None else self.steps,
            shift=defaults.shift if self.shift is None else self.shift,
            guidance_scale=(
                defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale
            ),
        )
        return request, request._beyond_distillation(defaults)

    def _beyond_distillation(self, defaults: Defaults) -> list[str]:
        learned, shifts = defaults.distilled_steps, defaults.distilled_shifts
        if learned is None:
            return []
        if self.timesteps is not None:
            if len(self.timesteps) > MAX_DISTILLED_TIMES:
                raise RequestError(
                    f"{len(self.timesteps)} timesteps are too many for this checkpoint; give at "
                    f"most {MAX_DISTILLED_TIMES}"
                )
            return []
        asked = [f"{self.steps} steps"] if self.steps != learned else []
        asked += [f"shift {self.shift:g}"] if self.shift not in shifts else []
        if not asked:
            return []
        taught = ", ".join(f"{shift:g}" for shift in shifts)
        taught = " or ".join(taught.rsplit(", ", 1))
        return [
            f"this checkpoint was distilled for {learned} steps at shift {taught}; running "
            f"{' and '.join(asked)} as asked"
        ]

    def check_words_and_numbers(self) -> None:
        """What `validated` checks that depends on no checkpoint and no audio.

        Raises:
            RequestError: see `validated`.
        """
        self._check_text()
        self._check_numbers()

    def _check_text(self) -> None:
        if not self.caption.strip() and self.task != "extract":
            raise RequestError("the prompt is empty; describe the music in a few words")
        for name, text in (("prompt", self.caption), ("lyrics", self.lyrics)):
            if "\x00" in text:
                raise RequestError(f"the {name} holds a NUL character; give plain text")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise RequestError(
                    f"the {name} holds bytes that are no text; give plain text in UTF-8"
                )
        if self.key and not _KEY.fullmatch(self.key):
            raise RequestError(
                f"unknown key '{self.key}'; give a note and a mode, for example 'C major', "
                "'F# minor' or 'Bb major'"
            )
        if self.time_signature and self.time_signature not in TIME_SIGNATURES:
            raise RequestError(
                f"unknown time signature '{self.time_signature}'; choose from "
                + ", ".join(TIME_SIGNATURES)
            )
        if self.language not in LANGUAGES:
            raise RequestError(
                f"unknown language '{self.language}'; choose from {' '.join(LANGUAGES)}"
            )

    def _check_numbers(self) -> None:
        check_range("duration", self.duration, MIN_DURATION, MAX_DURATION, "seconds")
        check_range("bpm", self.bpm, *BPM_RANGE)
        check_range("number of steps", self.steps, 1, MAX_STEPS)
        check_range("guidance scale", self.guidance_scale, 0, 100)
        check_range("shift", self.shift, 0.01, 100)
        check_range("cover strength", self.cover_strength, 0, 1)
        if not self.seeds:
            raise RequestError("the batch is empty; ask for at least one song")
        for seed in self.seeds:
            check_range("seed", seed, 0, MAX_SEED)
        self._check_repaint_settings()
        start, end = self.cfg_interval
        if not 0 <= start <= end <= 1:
            raise RequestError(f"guidance interval {start:g}..{end:g} is not a range within 0..1")
        if self.infer_method not in INFER_METHODS:
            raise RequestError(
                f"unknown inference method '{self.infer_method}'; choose from "
                + ", ".join(INFER_METHODS)
            )
        if self.timesteps is not None:
            falling = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
            if len(self.timesteps) > MAX_STEPS:
                raise RequestError(f"timesteps are more than {MAX_STEPS}; give fewer")
            if not self.timesteps or not falling or not all(0 < t <= 1 for t in self.timesteps):
                raise RequestError("timesteps must be falling numbers in (0, 1]")

    def _check_task(self, tasks: Sequence[str], sample_rate: int) -> None:
        if self.task not in tasks:
            raise RequestError(
                f"this checkpoint cannot do the task '{self.task}'; it can do: {', '.join(tasks)}"
            )
        codes = self.song_codes or (self.audio_codes,)
        if any(codes) and not all(_AUDIO_CODE.search(one) for one in codes):
            raise RequestError("the audio codes hold no <|audio_code_N|>")
        held = max(map(_coded_seconds, codes))
        check_range("length of the audio codes", held, 0, MAX_DURATION, "seconds")
        if self.song_codes and len(self.song_codes) != self.batch_size:
            raise RequestError(
                f"there are audio codes for {len(codes)} songs, and {self.batch_size} to make; "
                "give one text for all, or one a song"
            )
        coded = self.task == "cover" and any(codes)
        if self.task in SOURCE_TASKS and self.src_audio is None and not coded:
            raise RequestError(f"the task '{self.task}' needs source audio (--source FILE)")
        if any(codes) and self.task not in CODED_TASKS:
            raise RequestError(
                f"the task '{self.task}' works on audio, not on audio codes; leave the codes out, "
                "or ask for cover"
            )
        for name, audio in (("source", self.src_audio), ("reference", self.reference_audio)):
            if audio is not None and (audio.ndim != 2 or audio.shape[0] != 2):
                raise RequestError(
                    f"{name} audio has shape {tuple(audio.shape)}; expected (2, samples)"
                )
        if self.src_audio is not None:
            seconds = self.src_audio.shape[-1] / sample_rate
            check_range("length of the source audio", seconds, MIN_DURATION, MAX_DURATION, "s")
            if not self.src_audio.isfinite().all():
                raise RequestError("the source audio has samples that are NaN or infinite")
            self._check_repaint(seconds)
        if self.reference_audio is not None and self.reference_audio.shape[-1] < sample_rate // 10:
            raise RequestError("the reference audio is shorter than 0.1 s")

    def _check_repaint_settings(self) -> None:
        if self.repaint_mode not in REPAINT_MODES:
            raise RequestError(
                f"unknown repaint mode '{self.repaint_mode}'; choose from "
                + ", ".join(REPAINT_MODES)
            )
        frames = self.repaint_latent_crossfade_frames
        check_range("repaint strength", self.repaint_strength, 0, 1)
        check_range("repaint crossfade", frames, 0, MAX_CROSSFADE * FRAMES_PER_SECOND, "frames")
        seconds = self.repaint_wav_crossfade_sec
        check_range("repaint crossfade", seconds, 0, MAX_CROSSFADE, "seconds")

    def _check_repaint(self, seconds: float) -> None:
        if self.task not in REPAINT_TASKS:
            return
        start, end = self.repaint[0], seconds if self.repaint[1] is None else self.repaint[1]
        if not math.isfinite(start) or start > seconds or (start == seconds == end):
            raise RequestError(
                f"the repaint range starts at {start:g} s; the source audio runs from 0 to "
                f"{seconds:.2f} s"
            )
        if not start < end:
            raise RequestError(
                f"the repaint range {start:g}:{end:g} ends before it starts; give START:END"
            )
        if end < 0:
            raise RequestError(
                f"the repaint range ends at {end:g} s, before the source audio begins"
            )
        total = max(end, seconds) - min(start, 0.0)
        check_range("length of the song with its new ends", total, MIN_DURATION, MAX_DURATION, "s")


def _coded_seconds(codes: str) -> float:
    return len(_AUDIO_CODE.findall(codes)) / CODES_PER_SECOND


def audio_codes_in(text: str) -> list[int]:
    """The numbers of the `<|audio_code_N|>` in a text; five make a second."""
    return [int(number) for number in _AUDIO_CODE.findall(text)]


def check_range(name: str, value: float | None, low: float, high: float, unit: str = "") -> None:
    """Refuse a number outside its range; None stands for "not given".

    Raises:
        RequestError: names the field, the value and the range.
    """
    if value is None:
        return
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not (known and low <= value <= high):
        unit = f" {unit}" if unit else ""
        # Python writes no integer of thousands of digits.
        long = isinstance(value, int) and abs(value) >= 10**20
        shown = "beyond 1e+20" if long else f"{value:g}" if isinstance(value, float) else value
        raise RequestError(f"{name} {shown} is out of range; expected {low:g} to {high:g}{unit}")
