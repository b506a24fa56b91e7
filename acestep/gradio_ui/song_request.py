"""The form of the page, as plain values: what may stand in it and what it asks the models."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.errors import RequestError
from acestep.gradio_ui.limits import Limits
from acestep.song import normalise
from acestep.song.formats import FORMATS
from acestep.song.request import DEFAULT_DURATION, MAX_SEED, SOURCE_TASKS, UNKNOWN_LANGUAGE

if TYPE_CHECKING:
    from acestep.song.params import GenerationConfig, GenerationParams

TITLE = 60
"""Characters of a title at most."""
_MOST_STEPS = 100
_MOST_SONGS = 8
# The most of an adapter; `AdapterMixin.load_lora` says so too, but when its turn has come.
MAX_SCALE = 4


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
        instruction: in place of the task's own words to the model.
        source_file, reference_file: paths of uploads, or None.
        source_song: id of one of the visitor's songs, or empty.
        codes: audio codes to play.
        repaint_start, repaint_end: seconds; an end of -1 is the end of the source, and so is 0,
            unless the start is before the source: then it is its beginning.
        repaint_mode, repaint_strength, repaint_latent_crossfade, repaint_wav_crossfade: how the
            renewed part joins the rest, see `GenerationParams`; crossfades of -1 follow from
            mode and strength.
        cover_strength: share of the source that a cover keeps.
        track: for extract and lego.
        tracks: for complete, with commas between.
        thinking: plan with the language model first.
        rewrite, fill_in, name_language: what planning may do to the prompt, to what is left
            open, and to the language.
        lm_temperature, lm_guidance, lm_top_k, lm_top_p, lm_negative_prompt, lm_constrained: how
            the language model chooses its words.
        steps, guidance, shift: of the diffusion; 0 takes the checkpoint's own.
        adg: guide by angles.
        guidance_start, guidance_end: times that are guided, 1 is noise.
        timesteps: falling times with commas between, in place of steps and shift.
        method: of the diffusion.
        audio_format: one of `formats.FORMATS`.
        bit_depth, bitrate: bits a sample and kbit/s; 0 for the format's own.
        loudness: LUFS; 0 leaves songs as they are.
        lora, lora_scale: name of an adapter, and how much of it; empty for none.
    """

    prompt: str = ""
    lyrics: str = ""
    instrumental: bool = False
    language: str = UNKNOWN_LANGUAGE
    bpm: int = 0
    key: str = ""
    time_signature: str = ""
    duration: float = DEFAULT_DURATION
    seed: int = -1
    batch: int = 1
    task: str = "text2music"
    instruction: str = ""
    source_file: str | None = None
    source_song: str = ""
    codes: str = ""
    repaint_start: float = 0.0
    repaint_end: float = 0.0
    repaint_mode: str = "balanced"
    repaint_strength: float = 0.5
    repaint_latent_crossfade: int = -1
    repaint_wav_crossfade: float = -1.0
    cover_strength: float = 1.0
    track: str = ""
    tracks: str = ""
    reference_file: str | None = None
    thinking: bool = False
    rewrite: bool = True
    fill_in: bool = True
    name_language: bool = True
    lm_temperature: float = 0.85
    lm_guidance: float = 2.0
    lm_top_k: int = 0
    lm_top_p: float = 0.9
    lm_negative_prompt: str = "NO USER INPUT"
    lm_constrained: bool = True
    steps: int = 0
    guidance: float = 0.0
    adg: bool = False
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    shift: float = 0.0
    timesteps: str = ""
    method: str = "ode"
    audio_format: str = "flac"
    bit_depth: int = 0
    bitrate: int = 0
    loudness: float = 0.0
    lora: str = ""
    lora_scale: float = 1.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SongRequest:
        """A request from form values, which may be of any type and missing.

        Raises:
            RequestError: a value cannot be understood.
        """
        made: dict[str, Any] = {}
        for field in fields(cls):
            value = values.get(field.name)
            if value is None or value == "":
                continue
            understood = _understood(field.name, str(field.type), value)
            if understood is not None:
                made[field.name] = understood
        return cls(**made)

    @property
    def title(self) -> str:
        """The prompt in a line, shortened."""
        return title_of(self.prompt or self.task)

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
        bounds = (("number of steps", self.steps or 1, 1, _MOST_STEPS),
                  ("batch size", self.batch, 1, _MOST_SONGS),
                  ("LoRA scale", self.lora_scale, 0, MAX_SCALE),
                  ("seed", self.seed, -1, MAX_SEED))  # fmt: skip
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise RequestError(f"{name} {value} is out of range; expected {low} to {high}")
        if self.audio_format not in FORMATS:
            raise RequestError(f"unknown format; choose from {', '.join(FORMATS)}")
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
        latent, wave = self.repaint_latent_crossfade, self.repaint_wav_crossfade
        params = GenerationParams(
            task_type=self.task,
            instruction=self.instruction,
            reference_audio=sound.get("reference_audio"),
            src_audio=source,
            audio_codes=self.codes,
            caption=self.prompt,
            lyrics=self.lyrics,
            instrumental=self.instrumental,
            vocal_language=self.language,
            bpm=self.bpm or None,
            keyscale=self.key,
            timesignature=self.time_signature,
            duration=self.duration,
            inference_steps=self.steps or None,
            seed=self.seed,
            guidance_scale=self.guidance or None,
            use_adg=self.adg,
            cfg_interval_start=self.guidance_start,
            cfg_interval_end=self.guidance_end,
            shift=self.shift or None,
            infer_method=self.method,
            timesteps=self.timesteps,
            repainting_start=self.repaint_start,
            repainting_end=self.repaint_end if self.repaint_end or self.repaint_start < 0 else -1,
            repaint_mode=self.repaint_mode,
            repaint_strength=self.repaint_strength,
            repaint_latent_crossfade_frames=None if latent < 0 else latent,
            repaint_wav_crossfade_sec=None if wave < 0 else wave,
            audio_cover_strength=self.cover_strength,
            thinking=self.thinking,
            lm_temperature=self.lm_temperature,
            lm_cfg_scale=self.lm_guidance,
            lm_top_k=self.lm_top_k,
            lm_top_p=self.lm_top_p,
            lm_negative_prompt=self.lm_negative_prompt,
            use_cot_metas=self.fill_in,
            use_cot_caption=self.rewrite,
            use_cot_language=self.name_language,
            use_constrained_decoding=self.lm_constrained,
            track_name=self.track,
            complete_track_classes=self.tracks,
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
        """The values to fill the form with again; uploads among them may be gone by then."""
        return asdict(self)

    def _check_values(self, prompt_needed: bool) -> None:
        """What the models' own checks say, before the request has waited in the line."""
        from acestep.song.params import words_and_numbers

        params, config = self.params()
        config.encoding()
        config.target_loudness()
        request = words_and_numbers(params, config)
        if self.task in SOURCE_TASKS:
            request = replace(request, duration=None)
        if not prompt_needed:
            request = replace(request, task="extract")
        request.check_words_and_numbers()
        start, end = request.repaint
        if not (math.isfinite(start) and (end is None or math.isfinite(end))):
            raise RequestError("the repaint range must lie within the source")
        if self.task == "repaint" and end is not None and end <= start:
            raise RequestError(f"the repaint range {start:g}:{end:g} ends before it starts")


def _understood(name: str, kind: str, value: Any) -> Any:
    """A form's value as its field holds it; None for what says that it is not given."""
    read: dict[str, Callable[[Any], Any]] = {
        "bpm": lambda given: None if given in (0, "0") else normalise.bpm(given),
        "key": normalise.key,
        "time_signature": normalise.time_signature,
        "language": normalise.language,
        "duration": normalise.duration,
    }
    spoken = name.replace("_", " ")
    if name in read:
        return read[name](value)
    if kind == "bool":
        return normalise.flag(spoken, value)
    if kind == "int":
        return normalise.whole(spoken, value)
    if kind == "float":
        return normalise.number(spoken, value)
    return normalise.text(spoken, value)


def title_of(text: str) -> str:
    """A text in a line, shortened."""
    text = " ".join(text.split())
    return text if len(text) <= TITLE else text[: TITLE - 1].rstrip() + "…"


def cleaned(text: str) -> str:
    """Text without control characters, in composed form; line breaks stay."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    kept = (
        " " if char == "\t" else char
        for char in text
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Co", "Cn")
    )
    return "".join(kept).strip("\n")
