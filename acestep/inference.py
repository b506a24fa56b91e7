"""The Python API: parameters in, songs and files out; a few words in, a song's description out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from acestep.device import resolve
from acestep.diffusion import unheard
from acestep.errors import AceStepError, GenerationError, RequestError
from acestep.song import audio_files, ignored, limits, loudness, planning, saving
from acestep.song.params import GenerationConfig, GenerationParams, make_request
from acestep.song.progress import share
from acestep.song.records import describe, save_song
from acestep.song.request import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler
    from acestep.lm.options import WritingOptions
    from acestep.song.outcome import Generation
    from acestep.song.progress import Progress

__all__ = [
    "GenerationConfig",
    "GenerationParams",
    "GenerationResult",
    "SampleResult",
    "audio_to_codes",
    "create_sample",
    "describe",
    "format_sample",
    "generate_music",
    "make_request",
    "run",
    "save_song",
    "understand_music",
]


@dataclass
class GenerationResult:
    """What came of it.

    Attributes:
        audios: a dict a song: `tensor` `[2, samples]`, `sample_rate`, `seed`, `key` (its
            number), `path` and `params` (where it was saved and how it was made).
        status_message: a line for the user.
        extra_outputs: latents, condition, lyric tokens, times, warnings.
        success: whether there are songs.
        error: what was wrong, or None.
    """

    audios: list[dict[str, Any]] = field(default_factory=list)
    status_message: str = ""
    extra_outputs: dict[str, Any] = field(default_factory=dict)
    success: bool = True
    error: str | None = None


@dataclass
class SampleResult:
    """A song described: by hearing it, from a query, or rewritten.

    Attributes:
        caption, lyrics, bpm, duration, keyscale, language, timesignature: as in
            `GenerationParams`; duration in seconds.
        instrumental: whether it has no vocals.
        status_message: a line for the user.
        success: whether there is a description.
        error: what was wrong, or None.
    """

    caption: str = ""
    lyrics: str = ""
    bpm: int | None = None
    duration: float | None = None
    keyscale: str = ""
    language: str = ""
    timesignature: str = ""
    instrumental: bool = False
    status_message: str = ""
    success: bool = True
    error: str | None = None


def generate_music(
    dit_handler: AceStepHandler,
    llm_handler: LLMHandler | None,
    params: GenerationParams,
    config: GenerationConfig,
    save_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> GenerationResult:
    """Generate songs and, given a folder, save each with its parameters beside it.

    Args:
        dit_handler: a handler with a checkpoint loaded.
        llm_handler: plans text2music songs when it is loaded: what `params.use_cot_*` ask for,
            and audio codes when `params.thinking` is on; None does without.
        params: what to generate.
        config: how many, from which seeds, in which format.
        save_dir: where to write `song-1.flac`, `song-1.json`, …, counting on from what is
            there; None writes nothing.
        progress: called as `progress(fraction, desc=text)`.

    Returns:
        The songs, or `success=False` with the reason; an error never leaves a partial file.
    """
    try:
        if save_dir is not None:
            how = config.encoding()
        made = run(dit_handler, params, config, progress, llm_handler)
        audios: list[dict[str, Any]] = [
            {"key": number, "tensor": song.audio, "sample_rate": song.sample_rate,
             "seed": song.seed, "path": None, "params": describe(dit_handler, made, number)}
            for number, song in enumerate(made.songs)
        ]  # fmt: skip
        if save_dir is not None:
            for number, audio in enumerate(audios):
                names = saving.numbered(Path(save_dir), how.kind)
                audio["path"] = str(save_song(names, made, number, audio["params"], how))
    except AceStepError as error:
        return GenerationResult(success=False, error=str(error), status_message=str(error))
    from acestep.song.outcome import extra_outputs

    status = "; ".join(made.warnings) or f"made {len(audios)} on {dit_handler.device}"
    outputs = extra_outputs(made)
    if made.request.planned:
        outputs["lm_metadata"] = planning.metadata_of(made.request)
    if made.request.song_codes:
        outputs["audio_codes"] = list(made.request.song_codes)
    return GenerationResult(audios, status, outputs)


def run(
    dit_handler: AceStepHandler,
    params: GenerationParams,
    config: GenerationConfig,
    progress: Progress | None = None,
    llm_handler: LLMHandler | None = None,
) -> Generation:
    """What `generate_music` does before saving, for callers that want errors raised.

    More songs than fit into memory are made in turn.

    Raises:
        RequestError: bad parameters or unreadable files, or more than this machine can hold.
        GenerationError: a model's output cannot be used.
        CancelledError: the handler was told to stop.
    """
    target = config.target_loudness()
    asked = make_request(params, config)
    engine = dit_handler.engine
    if engine is None:
        raise RequestError(
            "no checkpoint is loaded to make the music; load one first (initialize_service), or "
            "use generate_with_stop_condition for plans alone"
        )
    asked.validated(dit_handler.tasks, engine.traits.sample_rate)
    if llm_handler is not None:
        dit_handler.lm_initialized = llm_handler.llm_initialized
    room = _room(dit_handler)
    request, notices = limits.within(asked, room, config.fit)
    notices += ignored.ignored(params, asked, engine.traits.is_turbo)
    if llm_handler is not None and planning.plans(llm_handler, request):
        request = planning.plan(llm_handler, request, progress)
        # What the planner chose, nobody asked for: it may be shortened.
        request, more = limits.within(request, room, fit=config.fit or asked.duration is None)
        notices += more
    notices += unheard.unheard(engine.tokenizer, request)
    turns, parts = limits.turns(request, room), []
    for number, turn in enumerate(turns):
        told = share(progress, number / len(turns), (number + 1) / len(turns))
        parts.append(dit_handler.generate(turn, told))
    made = limits.together(request, parts)
    made = replace(made, asked=asked, warnings=[*notices, *made.warnings])
    return loudness.songs_brought_to(made, target)


def _room(handler: AceStepHandler) -> limits.Room:
    """What there is for a request on the machine of a handler."""
    assert handler.engine is not None
    policy = handler.policy
    return limits.Room(
        handler.gpu_config,
        handler.lm_initialized,
        policy.on_mlx or not policy.is_accelerator,
        policy.free_memory if policy.on_mlx else resolve("cpu").free_memory,
        handler.engine.traits.condition_width,
        policy.on_mlx,
    )


def understand_music(
    llm_handler: LLMHandler,
    audio_codes: str = "",
    *,
    audio: str | Path | torch.Tensor | None = None,
    dit_handler: AceStepHandler | None = None,
    **options: Unpack[WritingOptions],
) -> SampleResult:
    """Describe a song, given as audio codes or as audio.

    Args:
        audio: a file, or `[2, samples]` at 48 kHz, in place of codes.
        dit_handler: a handler with a checkpoint loaded, which turns audio into codes.
        options: see `WritingOptions`; the temperature is 0.3 unless given.
    """
    try:
        if audio is not None:
            if dit_handler is None:
                raise RequestError("understanding audio needs a checkpoint: give a dit_handler")
            audio_codes = audio_to_codes(dit_handler, audio)
    except (RequestError, GenerationError) as error:
        return _sample({}, str(error))
    return _sample(*llm_handler.understand_audio_from_codes(audio_codes, **options))


def create_sample(
    llm_handler: LLMHandler,
    query: str,
    instrumental: bool = False,
    vocal_language: str | None = None,
    **options: Unpack[WritingOptions],
) -> SampleResult:
    """Invent a song from a few words: caption, lyrics and metadata.

    Args:
        vocal_language: of the lyrics, by code or name; None lets the model choose.
        options: see `WritingOptions`; the temperature is 0.85 unless given.
    """
    return _sample(
        *llm_handler.create_sample_from_query(query, instrumental, vocal_language, **options)
    )


def format_sample(
    llm_handler: LLMHandler,
    caption: str,
    lyrics: str,
    user_metadata: Mapping[str, Any] | None = None,
    **options: Unpack[WritingOptions],
) -> SampleResult:
    """Rewrite caption and lyrics in more detail, and add metadata.

    Args:
        user_metadata: fields that stay as they are.
        options: see `WritingOptions`; the temperature is 0.85 unless given.
    """
    return _sample(*llm_handler.format_sample_from_input(caption, lyrics, user_metadata, **options))


def audio_to_codes(handler: AceStepHandler, audio: str | Path | torch.Tensor) -> str:
    """The audio codes of a song, five a second, as text.

    Args:
        handler: with a checkpoint that has an audio tokenizer.
        audio: a file, or `[2, samples]` at 48 kHz.

    Raises:
        RequestError: the audio cannot be read, or the checkpoint has no audio tokenizer.
    """
    if isinstance(audio, str | Path):
        audio = audio_files.read(audio, SAMPLE_RATE)
    codes = handler.codes_of(audio)
    return "".join(f"<|audio_code_{code}|>" for code in codes)


def _sample(made: dict[str, Any], message: str) -> SampleResult:
    if not made:
        return SampleResult(status_message=message, success=False, error=message)
    return SampleResult(**made, status_message=message)
