"""The timestamps that alignment yields: of tokens, and of the lines they form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenTimestamp:
    """One lyric token in time.

    Attributes:
        token_id: the id that was aligned.
        text: what the token adds to the text; empty while a character is incomplete.
        start: first frame of the token, seconds.
        end: last frame of the token, seconds.
    """

    token_id: int
    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class SentenceTimestamp:
    """One line of the lyrics in time.

    Attributes:
        text: the line without its newline and outer spaces.
        start: start of the first token, seconds, rounded to a millisecond.
        end: end of the last token (the newline counts), seconds, rounded to a millisecond.
        tokens: the line's tokens, the one with the newline included.
        confidence: 0.0; kept because callers of ACE-Step read the field.
        row: index of the first token among all that were aligned.
    """

    text: str
    start: float
    end: float
    tokens: tuple[TokenTimestamp, ...]
    confidence: float = 0.0
    row: int = 0
