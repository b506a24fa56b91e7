"""What a caller asks for, in the public API's words, and how it becomes a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.errors import RequestError
from acestep.song import audio_files, loudness, normalise
from acestep.song import seeds as seeding
from acestep.song.formats import Encoding, encoding
from acestep.song.request import (
    MAX_SONGS,
    SAMPLE_RATE,
    SOURCE_TASKS,
    Planning,
    Request,
    check_range,
)

if TYPE_CHECKING:
    import torch

_OF_THE_CHECKPOINT = ("inference_steps", "guidance_scale", "shift")


@dataclass
class GenerationParams:
    """What to generate; what people type is understood, see `song.normalise`.

    Attributes:
        task_type: text2music, cover, repaint, extract, lego or complete.
        instruction: replaces the task's own instruction to the model.
        reference_audio: a file (or `[2, samples]` at 48 kHz) whose timbre to follow.
        src_audio: likewise, the audio to work on in every task but text2music.
        audio_codes: semantic codes, `<|audio_code_N|>`, five a second; a list has one text a
            song.
        caption: what the music is like.
        lyrics: words with section tags such as `[verse]`.
        instrumental: no vocals; the lyrics become `[Instrumental]`.
        vocal_language: a code of `request.LANGUAGES`, or a language's name.
        bpm: beats per minute, 30 to 300.
        keyscale: for example `C major`, `F# minor` or `Am`.
        timesignature: 2, 3, 4 or 6, or as `4/4`.
        duration: seconds; -1 takes the source's length, or 30 s.
        inference_steps: diffusion steps; None for the checkpoint's own.
        seed: of the first song, or of each (`"7,8"`); -1 draws one. Later songs of a batch
            count up from it.
        guidance_scale: classifier-free guidance; turbo checkpoints ignore it. None for the
            checkpoint's own.
        use_adg: angle-domain guidance, for checkpoints that take guidance.
        cfg_interval_start, cfg_interval_end: times that are guided; 1 is noise, 0 the song.
        shift: shift of the timestep schedule; None for the checkpoint's own.
        infer_method: `ode` or `sde`.
        timesteps: an explicit schedule, falling, in (0, 1]; a 0 at its end is dropped.
        repainting_start, repainting_end: seconds; an end of -1 is the end. A range may start
            before the source (below 0) or end after it, which makes the song longer.
        repaint_mode: conservative, balanced or aggressive.
        repaint_strength: 0 to 1, how freely `balanced` renews.
        repaint_latent_crossfade_frames, repaint_wav_crossfade_sec: how softly the renewed part
            joins the rest; None follows from mode and strength.
        audio_cover_strength: share of the steps that follow source or codes; the rest are plain
            text-to-music.
        thinking: have the language model make audio codes. Without it, and beside codes that
            are given, it still fills in and rewrites what `use_cot_*` say.
        lm_*, use_constrained_decoding: how it chooses its words.
        track_name: for extract and lego, for example `vocals`.
        complete_track_classes: for complete.
    """

    task_type: str = "text2music"
    instruction: str | None = None
    reference_audio: str | Path | torch.Tensor | None = None
    src_audio: str | Path | torch.Tensor | None = None
    audio_codes: str | Sequence[str] = ""
    caption: str = ""
    lyrics: str = ""
    instrumental: bool = False
    vocal_language: str = "unknown"
    bpm: float | str | None = None
    keyscale: str | None = ""
    timesignature: str | int | None = ""
    duration: float | str | None = -1.0
    inference_steps: int | str | None = 8
    seed: int | str | Sequence[int] | None = -1
    guidance_scale: float | str | None = 7.0
    use_adg: bool = False
    cfg_interval_start: float = 0.0
    cfg_interval_end: float = 1.0
    shift: float | str | None = 1.0
    infer_method: str = "ode"
    timesteps: Sequence[float] | str | None = None
    repainting_start: float = 0.0
    repainting_end: float | None = -1.0
    repaint_mode: str = "balanced"
    repaint_strength: float = 0.5
    repaint_latent_crossfade_frames: int | None = None
    repaint_wav_crossfade_sec: float | None = None
    audio_cover_strength: float = 1.0
    thinking: bool = True
    lm_temperature: float = 0.85
    lm_cfg_scale: float = 2.0
    lm_top_k: int = 0
    lm_top_p: float = 0.9
    lm_negative_prompt: str = "NO USER INPUT"
    use_cot_metas: bool = True
    use_cot_caption: bool = True
    use_cot_language: bool = True
    use_constrained_decoding: bool = True
    track_name: str | None = None
    complete_track_classes: Sequence[str] | str | None = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> GenerationParams:
        """Parameters from what a form, file or API call names.

        What it does not name of steps, guidance and shift is the checkpoint's own.

        Raises:
            RequestError: a name that there is not.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(fields) - set(known)):
            raise RequestError(f"unknown field '{unknown[0]}'; known: {', '.join(known)}")
        return cls(**{**dict.fromkeys(_OF_THE_CHECKPOINT), **fields})


@dataclass
class GenerationConfig:
    """How to run it.

    Attributes:
        batch_size: songs at once.
        allow_lm_batch: let the language model plan the songs of a batch together.
        use_random_seed: draw a seed for each song that `seeds` does not name.
        seeds: seeds of the songs, in place of `GenerationParams.seed`; negative ones are drawn.
        lm_batch_chunk_size: most songs that the language model plans at once.
        audio_format: flac, wav, mp3, ogg, opus, m4a or aac.
        audio_bit_depth: bits a sample of flac (16, 24) and wav (16, 24, 32: float); None for 24
            and 16.
        audio_bitrate: kbit/s of mp3 (constant), opus, m4a and aac; None for their own.
        audio_loudness: LUFS to bring each song to, as far as its peaks allow; None leaves it.
        fit: make songs that are too long for this machine as long as it can, in place of
            refusing them.
    """

    batch_size: int = 2
    allow_lm_batch: bool = False
    use_random_seed: bool = True
    seeds: Sequence[int] | str | int | None = None
    lm_batch_chunk_size: int = 8
    audio_format: str = "flac"
    audio_bit_depth: int | str | None = None
    audio_bitrate: int | str | None = None
    audio_loudness: float | str | None = None
    fit: bool = False

    def encoding(self) -> Encoding:
        """How songs are written.

        Raises:
            RequestError: no kind of file is like that.
        """
        return encoding(
            normalise.word("audio format", self.audio_format, "flac"),
            normalise.whole("bit depth", self.audio_bit_depth),
            normalise.whole("bit rate", self.audio_bitrate),
        )

    def target_loudness(self) -> float | None:
        """What songs are brought to, LUFS; None leaves them.

        Raises:
            RequestError: it cannot be understood, or is out of range.
        """
        target = normalise.number("loudness", self.audio_loudness)
        loudness.check(target)
        return target


def make_request(params: GenerationParams, config: GenerationConfig) -> Request:
    """A request from the API's parameters; reads the audio files they name.

    Raises:
        RequestError: a value cannot be understood, or an audio file cannot be read.
    """
    request = words_and_numbers(params, config)
    source, works_on_it = _audio(params.src_audio), request.task in SOURCE_TASKS
    return dataclasses.replace(
        request,
        src_audio=source,
        reference_audio=_audio(params.reference_audio),
        duration=None if source is not None and works_on_it else request.duration,
    )


def words_and_numbers(params: GenerationParams, config: GenerationConfig) -> Request:
    """The request without its audio.

    Raises:
        RequestError: a value cannot be understood.
    """
    seeds = _seeds(params, config)
    codes = normalise.audio_codes(params.audio_codes)
    start = _number("repaint start", params.repainting_start, 0.0)
    end = normalise.number("repaint end", params.repainting_end)
    low = _number("start of the guidance interval", params.cfg_interval_start, 0.0)
    high = _number("end of the guidance interval", params.cfg_interval_end, 1.0)
    frames = normalise.whole("repaint crossfade", params.repaint_latent_crossfade_frames)
    return Request(
        caption=normalise.text("prompt", params.caption),
        lyrics=normalise.lyrics(params.lyrics, params.instrumental),
        seeds=seeds,
        duration=normalise.duration(params.duration),
        bpm=normalise.bpm(params.bpm),
        key=normalise.key(params.keyscale),
        time_signature=normalise.time_signature(params.timesignature),
        language=normalise.language(params.vocal_language),
        task=normalise.word("task", params.task_type, "text2music"),
        instruction=normalise.text("instruction", params.instruction) or None,
        track_name=normalise.text("track name", params.track_name) or None,
        track_classes=normalise.names("track classes", params.complete_track_classes),
        audio_codes=codes if isinstance(codes, str) else "",
        song_codes=() if isinstance(codes, str) else codes * (len(seeds) if len(codes) == 1 else 1),
        repaint=(start, None if end == -1 else end),
        repaint_mode=normalise.word("repaint mode", params.repaint_mode, "balanced"),
        repaint_strength=_number("repaint strength", params.repaint_strength, 0.5),
        repaint_latent_crossfade_frames=frames,
        repaint_wav_crossfade_sec=normalise.number(
            "repaint crossfade", params.repaint_wav_crossfade_sec
        ),
        steps=normalise.whole("number of steps", params.inference_steps),
        guidance_scale=normalise.number("guidance scale", params.guidance_scale),
        use_adg=normalise.flag("use_adg", params.use_adg),
        cfg_interval=(low, high),
        shift=normalise.number("shift", params.shift),
        infer_method=normalise.word("inference method", params.infer_method, "ode"),
        timesteps=normalise.timesteps(params.timesteps),
        cover_strength=_number("cover strength", params.audio_cover_strength, 1.0),
        planning=_planning(params, config),
    )


def _planning(params: GenerationParams, config: GenerationConfig) -> Planning:
    together = normalise.whole("lm_batch_chunk_size", config.lm_batch_chunk_size) or 1
    return Planning(
        codes=normalise.flag("thinking", params.thinking),
        metas=normalise.flag("use_cot_metas", params.use_cot_metas),
        caption=normalise.flag("use_cot_caption", params.use_cot_caption),
        language=normalise.flag("use_cot_language", params.use_cot_language),
        temperature=_number("lm temperature", params.lm_temperature, 0.85),
        guidance_scale=_number("lm guidance scale", params.lm_cfg_scale, 2.0),
        top_k=normalise.whole("lm_top_k", params.lm_top_k) or 0,
        top_p=_number("lm_top_p", params.lm_top_p, 1.0),
        negative_prompt=normalise.text("negative prompt", params.lm_negative_prompt),
        constrained=normalise.flag(
            "use_constrained_decoding", params.use_constrained_decoding, True
        ),
        songs_at_once=max(together, 1) if config.allow_lm_batch else 1,
    )


def _number(name: str, value: Any, default: float) -> float:
    made = normalise.number(name, value)
    return default if made is None else made


def _seeds(params: GenerationParams, config: GenerationConfig) -> tuple[int, ...]:
    """A seed for each song: those given, then counted up from the last, or drawn."""
    songs = normalise.whole("batch size", config.batch_size)
    if songs is None or songs < 1:
        shown = normalise.shown(config.batch_size)
        raise RequestError(f"batch size {shown} is out of range; expected at least 1")
    check_range("batch size", songs, 1, MAX_SONGS)
    listed = normalise.seeds(config.seeds)
    first = listed or normalise.seeds(params.seed)
    # The songs after a seed of the parameters count up from it, whatever is drawn otherwise.
    counting = not listed or not config.use_random_seed
    return seeding.completed(first, songs, counting=counting)


def _audio(audio: str | Path | torch.Tensor | None) -> torch.Tensor | None:
    if audio is None or isinstance(audio, str | Path):
        return audio_files.read(audio, SAMPLE_RATE) if audio else None
    if not hasattr(audio, "ndim"):
        raise RequestError(
            f"'{normalise.shown(audio)}' is no audio; give a file or a tensor of (2, samples)"
        )
    return audio
