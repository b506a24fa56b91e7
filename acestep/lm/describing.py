"""A song described: by its audio codes, from a query, or rewritten from a draft."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from acestep.errors import RequestError
from acestep.lm import cot
from acestep.lm.options import WritingOptions
from acestep.lm.prompts import NO_CAPTION, Prompt, Prompts
from acestep.lm.sampling import Sampling
from acestep.lm.writer import Writer
from acestep.song import normalise, seeds

FAITHFUL, INVENTIVE = 0.3, 0.85
"""Temperatures of a description of what is there, and of one that is made up."""

MakePrompt = Callable[[Prompts], Prompt]
"""A use of the model that knows its words; raises `RequestError` where there are none."""


def understand(audio_codes: str) -> MakePrompt:
    """Audio codes, as text, are to be described."""

    def prompt(prompts: Prompts) -> Prompt:
        codes = cot.parse(audio_codes)[1]
        if not codes:
            raise RequestError("there are no audio codes to understand")
        return prompts.understand(codes)

    return prompt


def inspire(query: str, instrumental: bool) -> MakePrompt:
    """A query is to become a sample."""

    def prompt(prompts: Prompts) -> Prompt:
        if not query.strip():
            raise RequestError("the query is empty; say in a few words what to make")
        return prompts.inspire(query, instrumental)

    return prompt


def rewrite(caption: str, lyrics: str) -> MakePrompt:
    """Caption and lyrics are to be written in full."""

    def prompt(prompts: Prompts) -> Prompt:
        if not caption.strip() and not lyrics.strip():
            raise RequestError("caption and lyrics are empty; give at least one")
        return prompts.format(
            caption if caption.strip() else NO_CAPTION,
            lyrics if lyrics.strip() else normalise.INSTRUMENTAL,
        )

    return prompt


def describe(
    writer: Writer,
    make_prompt: MakePrompt,
    known: Mapping[str, Any],
    sampling: Sampling,
    options: WritingOptions,
) -> dict[str, Any]:
    """A whole block and the lyrics after it: the fields of `cot.FIELDS`, and `lyrics`.

    Args:
        writer: the engine at work.
        make_prompt: one of `understand`, `inspire` and `rewrite`.
        known: fields that are used as they are.
        sampling: how tokens are chosen.
        options: the grammar's and the seed's; the rest is in `sampling`.

    Raises:
        RequestError: the sampling, a field or the words of the prompt cannot be used.
        GenerationError, CancelledError: the engine failed, or was told to stop.
    """
    sampling.checked()
    fields = cot.known_fields(known, writer.max_duration)
    constrained = options.get("use_constrained_decoding", True)
    (seed,) = seeds.completed(normalise.seeds(options.get("seed", 0)) or (0,), 1)
    return writer.describe(make_prompt, fields, sampling, constrained, seed)
