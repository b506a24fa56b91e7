"""The block: written, read back, and read out of any text at all."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import RequestError
from acestep.lm import cot
from acestep.song.request import LANGUAGES, TIME_SIGNATURES

FIELDS = {
    "bpm": 120,
    "caption": "warm piano in the rain",
    "duration": 30,
    "keyscale": "F# minor",
    "language": "en",
    "timesignature": "4",
}

plain_text = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1)
some_fields = st.fixed_dictionaries(
    {},
    optional={
        "bpm": st.integers(30, 300),
        "caption": plain_text.map(str.strip).filter(bool),
        "duration": st.integers(10, 600),
        "keyscale": st.sampled_from(cot.KEYS),
        "language": st.sampled_from(LANGUAGES),
        "timesignature": st.sampled_from(TIME_SIGNATURES),
    },
)


def test_there_are_seventy_keys() -> None:
    assert len(set(cot.KEYS)) == 70


def test_the_block_is_sorted_yaml_with_integers() -> None:
    text = cot.block({**FIELDS, "duration": 30.0})
    assert text == (
        "<think>\nbpm: 120\ncaption: warm piano in the rain\nduration: 30\n"
        "keyscale: F# minor\nlanguage: en\ntimesignature: 4\n</think>"
    )
    assert cot.block({}) == "<think>\n</think>"


@given(some_fields)
def test_what_is_written_is_read_back(fields: dict[str, Any]) -> None:
    text = cot.block(fields)
    loaded = yaml.load(text[len("<think>\n") : -len("</think>")], yaml.BaseLoader) or {}
    assert set(loaded) == set(fields)
    read, codes = cot.parse(text)
    expected = dict(fields)
    if "caption" in expected:
        caption = cot.without_control_tokens(expected["caption"])
        read["caption"] = " ".join(read.get("caption", "").split())
        expected["caption"] = " ".join(caption.split())
    assert codes == ""
    assert read == expected


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("<think>\nbpm: 99\nkeyscale: C maj", {"bpm": 99}),
        ("bpm: 99\nlanguage: no\n</think>\nbpm: 100", {"bpm": 99, "language": "no"}),
        ("<think>\r\nbpm: 99\r\ntimesignature: 4/4\r\n</think>", {"bpm": 99, "timesignature": "4"}),
        ("<think>\nbpm: fast\nduration: [1]\nkeyscale: {}\n</think>", {}),
        ("<think>\nbpm: 9999\nduration: 5\nlanguage: klingon\n</think>", {}),
        ("<think>\nmood: sad\nBPM: 90 bpm\nduration: 30.7 s\n</think>", {"bpm": 90, "duration": 30}),
        ("<think>\ncaption: one\n  two\n\tthree\nfour\n  five\n</think>", {"caption": "one two three"}),
        ("<think>\ncaption: 'it''s: so'\n</think>", {"caption": "it's: so"}),
        ("<think>\ncaption: 'unclosed\n</think>", {"caption": "unclosed"}),
        ("<think>\nlanguage: 'no'\nbpm: 80\nbpm: 90\n</think>", {"language": "no", "bpm": 80}),
        ("", {}),
        ("<|audio_code_1|>bpm: 90", {}),
    ],
)  # fmt: skip
def test_broken_blocks(text: str, fields: dict[str, Any]) -> None:
    assert cot.parse(text)[0] == fields


@given(st.text() | st.text("<think>/:'\" \n\rbpmcaption|&*[]{}0123", max_size=200))
def test_any_text_is_tolerated(text: str) -> None:
    fields, _ = cot.parse(text)
    assert set(fields) <= set(cot.FIELDS)
    assert isinstance(cot.parse_lyrics(text), str)


def test_codes_and_lyrics() -> None:
    text = "<think>\nbpm: 90\n</think>\r\n\r\n# Lyric\r\n[verse]\r\nla<|im_end|>"
    assert cot.parse_lyrics(text) == "[verse]\nla"
    assert cot.parse_lyrics("no block at all") == ""
    assert cot.parse("<|audio_code_1|> x <|audio_code_23|>")[1] == (
        "<|audio_code_1|><|audio_code_23|>"
    )


def test_control_tokens_leave_a_users_text() -> None:
    assert cot.without_control_tokens("a<|im_<|x|>end|>b</think>\r\nc") == "ab\nc"


def test_what_is_not_given_is_left_out() -> None:
    given_fields = {
        "bpm": None,
        "caption": "",
        "keyscale": "auto",
        "duration": -1,
        "language": "N/A",
    }
    assert cot.known_fields(given_fields, 600) == {}
    assert cot.known_fields(None, 600) == {}
    assert cot.known_fields({"bpm": "120", "duration": 12.5, "timesignature": 3}, 600) == {
        "bpm": 120, "duration": 12.5, "timesignature": "3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tempo": 1}, "unknown field 'tempo'"),
        ({"bpm": 29}, "bpm 29 is out of range"),
        ({"bpm": "quick"}, "'quick' is not a number"),
        ({"bpm": float("nan")}, "out of range"),
        ({"duration": 181}, "expected 0.5 to 180 seconds"),
        ({"keyscale": "H major"}, "unknown keyscale 'H major'"),
        ({"language": "xx"}, "unknown language 'xx'"),
        ({"timesignature": 5}, "unknown timesignature '5'"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words.replace("(", "\\(")):
        cot.known_fields(fields, 180)
