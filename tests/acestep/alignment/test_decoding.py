"""Token texts: whole characters, linear time, tags and the span of the lyrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.alignment.decoding import (
    LONGEST_WAIT,
    decode_tokens,
    id_list,
    lyric_mask,
    lyric_span,
)
from acestep.errors import RequestError


class Bytes:
    """One token a byte of UTF-8; unfinished characters read as U+FFFD or are left out."""

    def __init__(self, errors: str = "replace") -> None:
        self.errors = errors
        self.decoded = 0

    def decode(self, token_ids: list[int]) -> str:
        self.decoded += len(token_ids)
        return bytes(token_ids).decode("utf-8", self.errors)


class Pieces:
    """Like SentencePiece: `_` stands for a space, which is dropped at the very start."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, token_ids: list[int]) -> str:
        text = "".join(self.pieces[token] for token in token_ids).replace("_", " ")
        return text.removeprefix(" ")


@pytest.mark.parametrize("errors", ["replace", "ignore"])
@pytest.mark.parametrize("text", ["Ça va", "夜空の星\n君", "Ø🎵!", "👩‍👩‍👧‍👦 ok", "e\u0301x"])
def test_a_character_belongs_to_the_token_that_completes_it(text: str, errors: str) -> None:
    texts = decode_tokens(Bytes(errors), list(text.encode()))
    expected: list[str] = []
    for character in text:
        expected += [""] * (len(character.encode()) - 1) + [character]
    assert texts == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_texts_joined_are_the_text(text: str) -> None:
    texts = decode_tokens(Bytes(), list(text.encode()))
    assert "".join(texts) == text
    assert len(texts) == len(text.encode())


@given(st.binary(min_size=1, max_size=40))
def test_damaged_bytes_lose_no_readable_text(data: bytes) -> None:
    texts = decode_tokens(Bytes(), list(data))
    assert len(texts) == len(data)
    readable = [character for character in "".join(texts) if character.isascii()]
    assert readable == [chr(byte) for byte in data if byte < 128]


def test_a_real_replacement_character_is_kept() -> None:
    assert "".join(decode_tokens(Bytes(), list("a\ufffdb".encode()))) == "a\ufffdb"
    assert "".join(decode_tokens(Bytes(), list("a\ufffd".encode()))) == "a\ufffd"


def test_spaces_between_tokens_survive() -> None:
    tokenizer = Pieces("_he", "llo", "_wor", "ld", "_", "!")
    assert decode_tokens(tokenizer, range(6)) == ["he", "llo", " wor", "ld", " ", "!"]


def test_tokens_without_text_are_empty() -> None:
    tokenizer = Pieces("", "a")
    assert decode_tokens(tokenizer, [1, 0, 1]) == ["a", "", "a"]


@pytest.mark.parametrize("length", [200, 2000])
@pytest.mark.parametrize("byte", [ord("a"), 0xFF])
def test_work_is_linear(length: int, byte: int) -> None:
    """The tokens handed to the tokenizer, however damaged, are a constant times their number."""
    tokenizer = Bytes()
    decode_tokens(tokenizer, [byte] * length)
    assert tokenizer.decoded <= 3 * LONGEST_WAIT * length


def test_ids_from_tensors_and_arrays() -> None:
    assert id_list(torch.tensor([3, 1])) == [3, 1]
    assert id_list(np.array([3, 1])) == [3, 1]
    assert id_list((3, 1)) == [3, 1]


@pytest.mark.parametrize("empty", [[], torch.tensor([], dtype=torch.int64), np.zeros(0)])
def test_no_tokens(empty: Any) -> None:
    with pytest.raises(RequestError, match="no lyrics to align"):
        decode_tokens(Bytes(), empty)


def test_tokens_of_a_batch_are_refused_with_their_shape() -> None:
    with pytest.raises(RequestError, match=r"\[tokens\], got \[1, 2\]"):
        id_list(torch.tensor([[3, 1]]))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a", "b"], [1, 1]),
        (["[", "verse", "]", "\n", "a"], [0, 0, 0, 1, 1]),
        (["[verse]", "a"], [0, 1]),
        (["[a", "][", "b", "]", "c"], [0, 0, 0, 0, 1]),
        (["a", "[never", "closed"], [1, 0, 0]),
        (["a]", "b"], [1, 1]),
        (["[", "[", "]", "a"], [0, 0, 0, 1]),
        ([], []),
    ],
)
def test_tags(texts: list[str], expected: list[int]) -> None:
    assert lyric_mask(texts).tolist() == expected


HEADING = "# Languages\nen\n\n# Lyric\n"


@pytest.mark.parametrize(
    ("after", "lyrics"),
    [
        ("la la\n<|endoftext|>", "la la\n"),
        ("la la<|endoftext|>" * 3, "la la"),
        ("cut off", "cut off"),
        ("\n[verse]\nla<|endoftext|>", "\n[verse]\nla"),
        ("# Lyric\nagain<|endoftext|>", "# Lyric\nagain"),
    ],
)
def test_span_of_the_lyrics(after: str, lyrics: str) -> None:
    """With byte tokens the end mark is spread over several; its last one shows it."""
    tokenizer = Marked()
    ids = tokenizer.encode(HEADING + after)
    start, stop = lyric_span(tokenizer, ids)
    assert tokenizer.decode(ids[start:stop]) == lyrics


@pytest.mark.parametrize("lyrics", ["", "   \n\n"])
def test_empty_lyrics(lyrics: str) -> None:
    tokenizer = Marked()
    with pytest.raises(RequestError, match="lyric text is empty"):
        lyric_span(tokenizer, tokenizer.encode(f"{HEADING}{lyrics}<|endoftext|>"))


def test_missing_heading() -> None:
    with pytest.raises(RequestError, match="# Lyric"):
        lyric_span(Marked(), Marked().encode("la la la<|endoftext|>"))


class Marked(Bytes):
    """Byte tokens, and the end of text as one token of its own, as in Qwen's vocabulary."""

    END = 256

    def encode(self, text: str) -> list[int]:
        parts = text.split("<|endoftext|>")
        ids = [[*part.encode(), self.END] for part in parts]
        return [token for part in ids for token in part][:-1]

    def decode(self, token_ids: list[int]) -> str:
        parts: list[list[int]] = [[]]
        for token in token_ids:
            if token == self.END:
                parts.append([])
            else:
                parts[-1].append(token)
        return "<|endoftext|>".join(bytes(part).decode("utf-8", "replace") for part in parts)
