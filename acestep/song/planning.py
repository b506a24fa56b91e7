"""The language model's part of the Python API: planning a song, describing and inventing one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from acestep.errors import GenerationError, RequestError
from acestep.song import audio_files
from acestep.song.params import SAMPLE_RATE, GenerationConfig, GenerationParams
from acestep.song.request import CODES_PER_SECOND, Request

if TYPE_CHECKING:
    import torch

    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler
    from acestep.lm.options import WritingOptions
    from acestep.song.progress import Progress

UNKNOWN_LANGUAGE = "unknown"


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


def plans(llm_handler: LLMHandler | None, params: GenerationParams) -> bool:
    """Whether the language model is to plan: asked for, loaded, and of use to the task."""
    return (
        params.thinking
        and llm_handler is not None
        and llm_handler.llm_initialized
        and params.task_type == "text2music"
        and not params.audio_codes
    )


def plan(
    llm_handler: LLMHandler,
    request: Request,
    params: GenerationParams,
    config: GenerationConfig,
    progress: Progress | None = None,
) -> Request:
    """Have the language model fill in a request.

    The songs of a batch share one diffusion and so one length: the metadata are chosen
    once, with the first seed; then each song gets audio codes of its own seed.

    Returns:
        The request with the planner's caption, metadata and audio codes.

    Raises:
        GenerationError: the language model failed, or was told to stop.
    """
    settings: dict[str, Any] = {
        "temperature": params.lm_temperature,
        "cfg_scale": params.lm_cfg_scale,
        "negative_prompt": params.lm_negative_prompt,
        "top_k": params.lm_top_k,
        "top_p": params.lm_top_p,
        "use_constrained_decoding": params.use_constrained_decoding,
        "progress": progress,
    }
    known = {
        "bpm": request.bpm,
        "keyscale": request.key,
        "timesignature": request.time_signature,
        "language": None if request.language == UNKNOWN_LANGUAGE else request.language,
        "duration": request.duration,
    }
    first = _made(
        llm_handler.generate_with_stop_condition(
            request.caption,
            request.lyrics,
            "dit",
            user_metadata=known,
            use_cot_metas=params.use_cot_metas,
            use_cot_caption=params.use_cot_caption,
            use_cot_language=params.use_cot_language,
            seeds=request.seeds[:1],
            **settings,
        )
    )
    chosen = dict(first["metadata"])
    codes: list[str] = []
    step = config.lm_batch_chunk_size if config.allow_lm_batch else 1
    for start in range(0, request.batch_size, max(step, 1)):
        seeds = request.seeds[start : start + max(step, 1)]
        answer = _made(
            llm_handler.generate_with_stop_condition(
                request.caption,
                request.lyrics,
                "llm_dit",
                user_metadata=chosen,
                use_cot_metas=False,
                use_cot_caption=False,
                use_cot_language=False,
                batch_size=len(seeds),
                seeds=seeds,
                **settings,
            )
        )
        several = len(seeds) > 1
        codes += answer["audio_codes"] if several else [answer["audio_codes"]]
        chosen.setdefault(
            "duration", (answer["metadata"][0] if several else answer["metadata"])["duration"]
        )
    return replace(
        request,
        caption=chosen.get("caption") or request.caption,
        bpm=chosen.get("bpm"),
        key=chosen.get("keyscale", ""),
        time_signature=chosen.get("timesignature", ""),
        language=chosen.get("language", UNKNOWN_LANGUAGE),
        duration=float(chosen["duration"]),
        song_codes=tuple(codes),
    )


def metadata_of(request: Request) -> dict[str, Any]:
    """What the planner chose for a request, under the names of `GenerationParams`."""
    return {
        "caption": request.caption,
        "bpm": request.bpm,
        "keyscale": request.key,
        "timesignature": request.time_signature,
        "language": request.language,
        "duration": request.duration,
    }


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
        vocal_language: of the lyrics; None lets the model choose.
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
    engine = handler.engine
    if engine is None:
        raise RequestError("no checkpoint is loaded; call initialize_service first")
    if not engine.traits.codes:
        raise RequestError("this checkpoint has no audio tokenizer; use another one")
    if isinstance(audio, str | Path):
        audio = audio_files.read(audio, SAMPLE_RATE)
    if audio.shape[-1] < SAMPLE_RATE // CODES_PER_SECOND:
        raise RequestError("the audio is shorter than one code, 0.2 s")
    with engine.working():
        codes = engine.codes_of(engine.encode(audio))
    return "".join(f"<|audio_code_{code}|>" for code in codes)


def _made(answer: dict[str, Any]) -> dict[str, Any]:
    if not answer["success"]:
        raise GenerationError(f"the language model: {answer['error']}")
    return answer


def _sample(made: dict[str, Any], message: str) -> SampleResult:
    if not made:
        return SampleResult(status_message=message, success=False, error=message)
    return SampleResult(**made, status_message=message)
