"""What a caller asks for, in the public API's words, and how it becomes a request."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.errors import RequestError
from acestep.song import audio_files
from acestep.song.request import Request

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 48000
_RANDOM_SEED_BITS = 32


@dataclass
class GenerationParams:
    """What to generate.

    Attributes:
        task_type: text2music, cover, repaint, extract, lego or complete.
        instruction: replaces the task's own instruction to the model.
        reference_audio: a file (or `[2, samples]` at 48 kHz) whose timbre to follow.
        src_audio: likewise, the audio to work on in every task but text2music.
        audio_codes: semantic codes, `<|audio_code_N|>`, five a second.
        caption: what the music is like.
        lyrics: words with section tags such as `[verse]`.
        instrumental: no vocals; the lyrics are left out.
        vocal_language: a code of `request.LANGUAGES`.
        bpm: beats per minute, 30 to 300.
        keyscale: for example `C major` or `F# minor`.
        timesignature: 2, 3, 4 or 6.
        duration: seconds; -1 takes the source's length, or 30 s.
        inference_steps: diffusion steps.
        seed: of the first song; -1 draws one. Later songs of a batch count up from it.
        guidance_scale: classifier-free guidance; turbo checkpoints ignore it.
        use_adg: angle-domain guidance; not available, True is refused.
        cfg_interval_start, cfg_interval_end: share of the schedule that is guided, 0 to 1.
        shift: shift of the timestep schedule.
        infer_method: `ode` or `sde`.
        timesteps: an explicit schedule, falling, in (0, 1].
        repainting_start, repainting_end: seconds; an end of -1 is the end.
        audio_cover_strength: how much of the cover's source to keep, 0 to 1.
        thinking, lm_*, use_cot_*, use_constrained_decoding: the language model's settings.
        track_name: for extract and lego, for example `vocals`.
        complete_track_classes: for complete.
    """

    task_type: str = "text2music"
    instruction: str | None = None
    reference_audio: str | Path | torch.Tensor | None = None
    src_audio: str | Path | torch.Tensor | None = None
    audio_codes: str = ""
    caption: str = ""
    lyrics: str = ""
    instrumental: bool = False
    vocal_language: str = "unknown"
    bpm: int | None = None
    keyscale: str = ""
    timesignature: str = ""
    duration: float = -1.0
    inference_steps: int = 8
    seed: int = -1
    guidance_scale: float = 7.0
    use_adg: bool = False
    cfg_interval_start: float = 0.0
    cfg_interval_end: float = 1.0
    shift: float = 1.0
    infer_method: str = "ode"
    timesteps: Sequence[float] | None = None
    repainting_start: float = 0.0
    repainting_end: float = -1.0
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
    complete_track_classes: Sequence[str] = ()


@dataclass
class GenerationConfig:
    """How to run it.

    Attributes:
        batch_size: songs at once.
        allow_lm_batch: let the language model plan the songs of a batch together.
        use_random_seed: draw a seed for each song that `seeds` does not name.
        seeds: seeds of the songs; negative ones are drawn.
        lm_batch_chunk_size: most songs that the language model plans at once.
        audio_format: flac, wav, mp3, ogg, opus, m4a or aac.
        audio_bit_depth: bits a sample of flac (16, 24) and wav (16, 24, 32: float); None for 24
            and 16.
        audio_bitrate: kbit/s of mp3 (constant), opus, m4a and aac; None for their own.
        audio_loudness: LUFS to bring each song to, as far as its peaks allow; None leaves it.
    """

    batch_size: int = 2
    allow_lm_batch: bool = False
    use_random_seed: bool = True
    seeds: Sequence[int] | None = None
    lm_batch_chunk_size: int = 8
    audio_format: str = "flac"
    audio_bit_depth: int | None = None
    audio_bitrate: int | None = None
    audio_loudness: float | None = None

    def encoding(self) -> audio_files.Encoding:
        """How songs are written.

        Raises:
            RequestError: no kind of file is like that.
        """
        return audio_files.encoding(self.audio_format, self.audio_bit_depth, self.audio_bitrate)


def make_request(params: GenerationParams, config: GenerationConfig) -> Request:
    """A request from the API's parameters; reads the audio files they name.

    Raises:
        RequestError: an audio file cannot be read, or an option is not available.
    """
    if params.use_adg:
        raise RequestError("angle-domain guidance (use_adg) is not available; leave it out")
    end = params.repainting_end
    source = _audio(params.src_audio)
    return Request(
        caption=params.caption,
        lyrics="" if params.instrumental else params.lyrics,
        seeds=_seeds(params, config),
        duration=None if source is not None or params.duration == -1 else params.duration,
        bpm=params.bpm,
        key=params.keyscale,
        time_signature=params.timesignature,
        language=params.vocal_language,
        task=params.task_type,
        instruction=params.instruction,
        track_name=params.track_name,
        track_classes=tuple(params.complete_track_classes),
        src_audio=source,
        reference_audio=_audio(params.reference_audio),
        audio_codes=params.audio_codes,
        repaint=(params.repainting_start, None if end in (None, -1) else end),
        steps=params.inference_steps,
        guidance_scale=params.guidance_scale,
        cfg_interval=(params.cfg_interval_start, params.cfg_interval_end),
        shift=params.shift,
        infer_method=params.infer_method,
        timesteps=tuple(params.timesteps) if params.timesteps is not None else None,
        cover_strength=params.audio_cover_strength,
    )


def _seeds(params: GenerationParams, config: GenerationConfig) -> tuple[int, ...]:
    """A seed for each song: those given, then counted up from the last, or drawn."""
    if config.batch_size < 1:
        raise RequestError(f"batch size {config.batch_size} is out of range; expected at least 1")
    given = list(config.seeds or ())[: config.batch_size]
    if not given and params.seed >= 0:
        given = [params.seed + number for number in range(config.batch_size)]
    if given and not config.use_random_seed:
        given += [given[-1] + n for n in range(1, config.batch_size - len(given) + 1)]
    given += [-1] * (config.batch_size - len(given))
    return tuple(s if s >= 0 else secrets.randbits(_RANDOM_SEED_BITS) for s in given)


def _audio(audio: str | Path | torch.Tensor | None) -> torch.Tensor | None:
    if audio is None or isinstance(audio, str | Path):
        return audio_files.read(audio, SAMPLE_RATE) if audio else None
    return audio
