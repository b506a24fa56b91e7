"""A batch of songs planned: from a checked request to metadata and audio codes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acestep.errors import RequestError
from acestep.lm import cot
from acestep.lm.sampling import Sampling
from acestep.lm.writer import Wish, Writer
from acestep.song import normalise
from acestep.song import seeds as seeding

INFER_TYPES = ("dit", "llm_dit")


@dataclass(frozen=True)
class PlanRequest:
    """What is asked of the planner.

    Attributes:
        caption, lyrics: what the music is like, and its words.
        infer_type: `dit` stops after the metadata; `llm_dit` goes on to the audio codes.
        sampling: how tokens are chosen.
        negative_prompt: caption of the unconditional prompt.
        constrained: hold the metadata to the grammar.
        known: fields of `cot.FIELDS` that are used as they are.
        wanted: fields that the model may add.
        batch: how many songs.
        seeds: one a song; negative ones are drawn, missing ones count up from the last, or
            from 0 where none is given.
    """

    caption: str
    lyrics: str
    infer_type: str
    sampling: Sampling
    negative_prompt: str
    constrained: bool
    known: Mapping[str, Any]
    wanted: Collection[str]
    batch: int
    seeds: Sequence[int] | str | int | None

    def checked(self) -> PlanRequest:
        """This request.

        Raises:
            RequestError: the kind, the number of songs or the sampling is out of range.
        """
        if self.infer_type not in INFER_TYPES:
            raise RequestError(
                f"unknown infer_type '{self.infer_type}'; choose from {', '.join(INFER_TYPES)}"
            )
        if self.batch < 1:
            raise RequestError(f"batch size {self.batch} is out of range; expected at least 1")
        self.sampling.checked()
        return self

    def completed_seeds(self) -> list[int]:
        """A seed for each song; what is to be drawn is drawn now."""
        return list(seeding.completed(normalise.seeds(self.seeds) or (0,), self.batch))


def wanted_fields(metas: bool, caption: bool, language: bool) -> set[str]:
    """The fields that the model may add, by what it may think about."""
    return {
        *(cot.METAS if metas else ()),
        *(("caption",) if caption else ()),
        *(("language",) if language else ()),
    }


def plan(writer: Writer, request: PlanRequest) -> dict[str, Any]:
    """Have the metadata written (phase 1) and, for `llm_dit`, the audio codes (phase 2).

    Returns:
        See `answer`; lists for more than one song.

    Raises:
        RequestError: see `PlanRequest.checked` and `cot.known_fields`.
        GenerationError, CancelledError: the engine failed, or was told to stop.
    """
    request.checked()
    seeds = request.completed_seeds()
    known = cot.known_fields(request.known, writer.max_duration)
    wish = Wish(request.caption, request.lyrics, request.negative_prompt, request.sampling, seeds)
    plans, texts = writer.plan(wish, known, request.wanted, request.constrained)
    with_codes = request.infer_type == "llm_dit"
    codes = writer.codes(wish, plans) if with_codes else [""] * request.batch
    extra = {"cot": texts, "seeds": seeds}
    if request.batch == 1:
        return answer(plans[0], codes[0], extra)
    return answer(plans, codes, extra)


def answer(
    metadata: Any, codes: Any, extra: dict[str, Any] | None = None, error: str | None = None
) -> dict[str, Any]:
    """A plan as callers of `LLMHandler` know it, or the line that says why there is none."""
    return {
        "metadata": metadata,
        "audio_codes": codes,
        "success": error is None,
        "error": error,
        "extra_outputs": extra or {},
    }
