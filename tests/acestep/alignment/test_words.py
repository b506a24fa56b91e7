"""Words from tokens: spaces, unspaced scripts, and text that joins up again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.alignment.types import TokenTimestamp
from acestep.alignment.words import lyric_lines
from acestep.dit_alignment_score import MusicStampsAligner


class Bytes:
    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


def words_of(*texts: str) -> list[tuple[str, float, float]]:
    stamps = [TokenTimestamp(0, text, i, i + 0.5) for i, text in enumerate(texts)]
    (line,) = lyric_lines(MusicStampsAligner(Bytes()).sentence_timestamps(stamps))
    return [(word.text, word.start, word.end) for word in line.words]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["He", "llo", " wor", "ld", "\n"], [("Hello ", 0, 1.5), ("world", 2, 3.5)]),
        (["a", " ", "  b"], [("a ", 0, 0.5), ("b", 2, 2.5)]),
        (["", "夜", "空 ok"], [("夜", 1, 1.5), ("空 ", 2, 2.5), ("ok", 2, 2.5)]),
        ([" ", "x"], [("x", 1, 1.5)]),
        (["don", "'", "t."], [("don't.", 0, 2.5)]),
    ],
)
def test_words(texts: list[str], expected: list[tuple[str, float, float]]) -> None:
    assert words_of(*texts) == expected


@given(st.lists(st.sampled_from(["la", " ", "é", "夜", "か", "x y", " b"]), min_size=1, max_size=9))
def test_words_joined_are_the_line(texts: list[str]) -> None:
    if "".join(texts).strip():
        line = " ".join("".join(texts).split())
        assert "".join(text for text, _, _ in words_of(*texts)) == line
