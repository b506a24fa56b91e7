"""Lines and words for lyric files, from the timestamps of tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from acestep.alignment.lyric_files import LyricLine, LyricWord
from acestep.alignment.types import SentenceTimestamp

# Scripts that put no space between words, by the start of their characters' Unicode names;
# there each character is timed by itself.
UNSPACED_SCRIPTS = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA")


def lyric_lines(sentences: Sequence[SentenceTimestamp]) -> list[LyricLine]:
    """Sentences as lines with their words.

    A word starts with the token that holds its first character and ends with the token that
    holds its last; the space after it is part of it, so the words joined are the line.
    """
    return [
        LyricLine(sentence.text, sentence.start, sentence.end, _words(sentence))
        for sentence in sentences
    ]


def _words(sentence: SentenceTimestamp) -> tuple[LyricWord, ...]:
    words: list[LyricWord] = []
    open_word = False
    for token in sentence.tokens:
        for char in token.text:
            if char.isspace():
                open_word = False
                if words and not words[-1].text.endswith(" "):
                    words[-1] = LyricWord(words[-1].text + " ", words[-1].start, words[-1].end)
            elif open_word and not _stands_alone(char):
                words[-1] = LyricWord(words[-1].text + char, words[-1].start, token.end)
            else:
                words.append(LyricWord(char, token.start, token.end))
                open_word = not _stands_alone(char)
    if words:
        words[-1] = LyricWord(words[-1].text.rstrip(), words[-1].start, words[-1].end)
    return tuple(words)


def _stands_alone(char: str) -> bool:
    return unicodedata.name(char, "").startswith(UNSPACED_SCRIPTS)
