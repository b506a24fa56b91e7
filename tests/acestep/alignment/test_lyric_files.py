"""Lyric files: what players are given, to the letter."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.alignment.lyric_files import LyricLine, LyricWord, clock, lrc, srt, vtt

VERSE = LyricLine("[verse]", 0.0, 1.2)
HELLO = LyricLine(
    "Hello <big> world",
    1.2,
    3.2,
    (LyricWord("Hello ", 1.2, 1.7), LyricWord("<big> ", 1.9, 2.5), LyricWord("world", 2.6, 3.0)),
)
NIGHT = LyricLine("夜空 & more", 3661.004, 3662.0)
SONG = [VERSE, HELLO, NIGHT]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "00:00.00"),
        (59.994, "00:59.99"),
        (59.996, "01:00.00"),
        (61.5, "01:01.50"),
        (5400.0, "90:00.00"),
        (-0.001, "00:00.00"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@given(st.floats(0, 5999))
def test_clock_is_never_off_by_more_than_half_a_hundredth(seconds: float) -> None:
    match = re.fullmatch(r"(\d\d):([0-5]\d)\.(\d\d)", clock(seconds))
    assert match is not None
    back = int(match[1]) * 60 + int(match[2]) + int(match[3]) / 100
    assert abs(back - seconds) <= 0.005 + 1e-9


def test_plain_lrc_leaves_section_marks_out() -> None:
    assert lrc(SONG) == "[00:01.20]Hello <big> world\n[61:01.00]夜空 & more\n"


def test_lrc_with_standard_tags() -> None:
    text = lrc(SONG, title=" My\nsong ", by="acestep", length=3725.6, keep_tags=True)
    assert text.splitlines()[:4] == [
        "[ti:My song]",
        "[length:62:06]",
        "[by:acestep]",
        "[00:00.00][verse]",
    ]


def test_lrc_end_times_clear_the_display_in_gaps() -> None:
    close = LyricLine("next", 3.2, 4.0)
    assert lrc([HELLO, close, NIGHT], end_times=True) == (
        "[00:01.20]Hello <big> world\n"
        "[00:03.20]next\n"
        "[00:04.00]\n"
        "[61:01.00]夜空 & more\n"
        "[61:02.00]\n"
    )


def test_enhanced_lrc_stamps_each_word() -> None:
    assert lrc([HELLO, NIGHT], words=True) == (
        "[00:01.20]<00:01.20>Hello <00:01.90><big> <00:02.60>world<00:03.00>\n"
        "[61:01.00]夜空 & more\n"
    )


def test_srt() -> None:
    arrow = LyricLine("a --> b", 4.0, 4.0)
    assert srt([VERSE, HELLO, arrow]) == (
        "1\n00:00:01,200 --> 00:00:03,200\nHello <big> world\n\n"
        "2\n00:00:04,000 --> 00:00:04,001\na -> b\n"
    )
    assert "01:01:01,004" in srt([NIGHT])
    assert srt(SONG, keep_tags=True).startswith("1\n00:00:00,000 --> 00:00:01,200\n[verse]\n")


def test_vtt() -> None:
    assert vtt([VERSE, HELLO, NIGHT]) == (
        "WEBVTT\n\n"
        "00:00:01.200 --> 00:00:03.200\nHello &lt;big&gt; world\n\n"
        "01:01:01.004 --> 01:01:02.000\n夜空 &amp; more\n"
    )


def test_vtt_word_stamps_rise_strictly_within_the_cue() -> None:
    line = LyricLine(
        "a b c d e",
        1.0,
        2.0,
        tuple(
            LyricWord(f"{w} ", t, t)
            for w, t in zip("abcde", (1.0, 1.5, 1.5, 1.7, 2.0), strict=True)
        ),
    )
    assert vtt([line, NIGHT], words=True) == (
        "WEBVTT\n\n"
        "00:00:01.000 --> 00:00:02.000\na <00:00:01.500>b c <00:00:01.700>d e \n\n"
        "01:01:01.004 --> 01:01:02.000\n夜空 &amp; more\n"
    )


def test_nothing_to_write() -> None:
    assert lrc([VERSE]) == ""
    assert srt([VERSE]) == ""
    assert vtt([]) == "WEBVTT\n"


@pytest.mark.parametrize(
    ("text", "is_tag"),
    [("[verse]", True), ("[intro] [verse 2]", True), ("[a] sung [b]", False), ("la [x]", False)],
)
def test_section_marks(text: str, is_tag: bool) -> None:
    assert LyricLine(text, 0, 1).is_tag is is_tag
