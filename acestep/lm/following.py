"""What the engines share that write a text token by token, whatever library they compute with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from acestep.errors import GenerationError
from acestep.lm.grammar import Constraint, FreeText, Grammar, Vocabulary
from acestep.lm.prompts import Prompt

if TYPE_CHECKING:
    from acestep.lm.backend import TextJob
    from acestep.lm.sampling import Sampling
    from acestep.lm.tokens import AudioTokens


def constraint_of(vocabulary: Vocabulary, tokens: AudioTokens, job: TextJob) -> Constraint:
    """What holds the texts of a job to their form."""
    batch = len(job.prompts)
    if job.grammar is None:
        return FreeText(vocabulary, tokens.codes, [job.end_id], batch)
    return Grammar(vocabulary, job.grammar, batch)


def follow(
    constraint: Constraint, texts: list[list[int]], chosen: list[list[int]], most: int
) -> list[list[int]]:
    """Note what the items chose, and what the grammar forces after it, at the texts' ends.

    Args:
        constraint: which takes note of it too.
        texts: changed in place.
        chosen: a token for each item, or nothing where what is forced comes first.
        most: tokens to note.

    Returns:
        the tokens noted, equally many for each item and no more than `most`.
    """
    noted: list[list[int]] = [[] for _ in texts]
    following = chosen or constraint.forced(most)
    while following[0]:
        for tokens_of, text, new in zip(noted, texts, following, strict=True):
            tokens_of += new
            text += new
        for column in zip(*following, strict=True):
            constraint.consume(column)
        following = constraint.forced(most - len(noted[0]))
    return noted


def extended(prompt: Prompt, text: list[int]) -> Prompt:
    """A prompt with a text after it, and so its counterpart."""
    other = prompt.unconditional
    return Prompt([*prompt.conditional, *text], None if other is None else [*other, *text])


def ended(job: TextJob, constraint: Constraint, texts: Sequence[list[int]]) -> list[list[int]]:
    """The texts, each up to its end.

    Raises:
        GenerationError: a grammar was not followed to its end.
    """
    if job.grammar is not None and not constraint.finished:
        raise GenerationError(
            f"the language model did not end its text within {job.limit} tokens; try again"
        )
    return [_until(text, job.end_id) for text in texts]


def rows_of(prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
    """The sequences of a batch: every prompt and, with guidance, their counterparts after them."""
    rows = [list(prompt.conditional) for prompt in prompts]
    if sampling.guided:
        rows += [list(prompt.unconditional or ()) for prompt in prompts]
    return rows


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
