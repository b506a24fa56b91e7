"""Planning: what a language model adds to a request before it becomes music."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from acestep.errors import GenerationError
from acestep.song.progress import share
from acestep.song.request import CODES_PER_SECOND, UNKNOWN_LANGUAGE, Request

# Tokens of a block of metadata, about.
_WORDS = 80

PLANNED_TASKS = ("text2music",)


class Planner(Protocol):
    """A language model that plans, such as `LLMHandler`."""

    @property
    def llm_initialized(self) -> bool:
        """Whether a model is loaded."""

    def generate_with_stop_condition(self, *args: Any, **keywords: Any) -> dict[str, Any]:
        """Metadata and codes for caption and lyrics, see `LLMHandler`."""


def plans(planner: Planner, request: Request) -> bool:
    """Whether there is anything that the planner can add to the request."""
    return planner.llm_initialized and request.task in PLANNED_TASKS and request.planning.asked


def plan(planner: Planner, request: Request, progress: Any = None) -> Request:
    """Have the language model fill in a request, as its `planning` says.

    The songs of a batch share one diffusion and so one length: the metadata are chosen
    once, with the first seed; then each song gets audio codes of its own seed. Without
    `planning.codes`, or where the request has codes, the metadata are all.

    Args:
        planner: with a model loaded.
        request: within its limits.
        progress: called as `progress(fraction, desc=text)`.

    Returns:
        The request with the planner's caption, metadata and audio codes.

    Raises:
        GenerationError: the language model failed, or was told to stop.
    """
    coding = request.planning.codes and not request.has_codes
    until = _words_share(request) if coding else 1.0
    chosen = _metadata(planner, request, share(progress, 0.0, until))
    codes: tuple[str, ...] = request.song_codes
    if coding:
        codes = tuple(_codes(planner, request, chosen, share(progress, until, 1.0)))
    planned = replace(
        request,
        caption=chosen.get("caption") or request.caption,
        bpm=chosen.get("bpm"),
        key=chosen.get("keyscale", ""),
        time_signature=chosen.get("timesignature", ""),
        language=chosen.get("language", UNKNOWN_LANGUAGE),
        song_codes=codes,
        planned=True,
    )
    # Codes that the caller brought have their own length, whatever the request says of it.
    if request.has_codes or "duration" not in chosen:
        return planned
    return replace(planned, duration=float(chosen["duration"]))


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


def _metadata(planner: Planner, request: Request, progress: Any) -> dict[str, Any]:
    """What is given, and what the planner adds to it."""
    planning = request.planning
    known = {
        "bpm": request.bpm,
        "keyscale": request.key,
        "timesignature": request.time_signature,
        "language": None if request.language == UNKNOWN_LANGUAGE else request.language,
        "duration": request.duration,
    }
    answer = _made(
        planner.generate_with_stop_condition(
            request.caption,
            request.lyrics,
            "dit",
            user_metadata=known,
            use_cot_metas=planning.metas,
            use_cot_caption=planning.caption,
            use_cot_language=planning.language,
            seeds=request.seeds[:1],
            **_settings(request, progress),
        )
    )
    return dict(answer["metadata"])


def _words_share(request: Request) -> float:
    """How much of the planning is words, by their number of tokens."""
    return _WORDS / (_WORDS + CODES_PER_SECOND * request.seconds * request.batch_size)


def _codes(planner: Planner, request: Request, chosen: dict[str, Any], progress: Any) -> list[str]:
    """Audio codes of each song; where nobody said how long it is, the planner does."""
    codes: list[str] = []
    step = request.planning.songs_at_once
    for start in range(0, request.batch_size, step):
        seeds = request.seeds[start : start + step]
        part = share(
            progress, start / request.batch_size, (start + len(seeds)) / request.batch_size
        )
        answer = _made(
            planner.generate_with_stop_condition(
                request.caption,
                request.lyrics,
                "llm_dit",
                user_metadata=chosen,
                use_cot_metas=False,
                use_cot_caption=False,
                use_cot_language=False,
                batch_size=len(seeds),
                seeds=seeds,
                **_settings(request, part),
            )
        )
        several = len(seeds) > 1
        codes += answer["audio_codes"] if several else [answer["audio_codes"]]
        first = answer["metadata"][0] if several else answer["metadata"]
        chosen.setdefault("duration", first["duration"])
    return codes


def _settings(request: Request, progress: Any) -> dict[str, Any]:
    planning = request.planning
    return {
        "temperature": planning.temperature,
        "cfg_scale": planning.guidance_scale,
        "negative_prompt": planning.negative_prompt,
        "top_k": planning.top_k,
        "top_p": planning.top_p,
        "use_constrained_decoding": planning.constrained,
        "progress": progress,
    }


def _made(answer: dict[str, Any]) -> dict[str, Any]:
    if not answer["success"]:
        raise GenerationError(f"the language model: {answer['error']}")
    return answer
