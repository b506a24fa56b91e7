"""The Python API: parameters in, songs and files out; a few words in, a song's description out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from acestep.errors import AceStepError, GenerationError, RequestError
from acestep.song import audio_files, loudness, planning, saving
from acestep.song.params import SAMPLE_RATE, GenerationConfig, GenerationParams, make_request
from acestep.song.records import describe, save_song

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

    Raises:
        RequestError: bad parameters or unreadable files.
        GenerationError: a model's output cannot be used.
        CancelledError: the handler was told to stop.
    """
    target = config.target_loudness()
    request = make_request(params, config)
    if llm_handler is not None:
        dit_handler.lm_initialized = llm_handler.llm_initialized
    if llm_handler is None or not planning.plans(llm_handler, request):
        return loudness.songs_brought_to(dit_handler.generate(request, progress), target)
    request = request.validated(dit_handler.tasks)
    request, warnings = request.limited(dit_handler.gpu_config, True)
    request = planning.plan(llm_handler, request, progress)
    made = dit_handler.generate(request, progress)
    made = replace(made, warnings=[*warnings, *made.warnings])
    return loudness.songs_brought_to(made, target)


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
