"""Tests that the ends of long prompts and lyrics are named."""

from __future__ import annotations

from dataclasses import replace

from acestep.diffusion.prompts import prompt_text, text_ids
from acestep.diffusion.unheard import unheard
from acestep.handler import AceStepHandler
from acestep.song.request import Request

SHORT = Request("warm piano, rain", (1,), lyrics="la la", key="C major")


def test_what_is_heard_whole_is_not_spoken_of(handler: AceStepHandler) -> None:
    assert handler.engine is not None
    assert unheard(handler.engine.tokenizer, SHORT) == []


def test_the_words_that_are_not_heard_are_named(handler: AceStepHandler) -> None:
    assert handler.engine is not None
    tokenizer = handler.engine.tokenizer
    words = [f"word{number}" for number in range(400)]
    (line,) = unheard(tokenizer, replace(SHORT, caption=" ".join(words)))
    assert "longer than the 256 tokens" in line
    assert "bpm, key and time signature" in line
    request = replace(SHORT, caption=" ".join(words))
    read = tokenizer.decode(text_ids(tokenizer, prompt_text(request, "text2music", 30.0)))
    first = line.split("not heard: '")[1].split()[0]
    lost = next(n for n, word in enumerate(words) if word.endswith(first))
    assert words[lost - 1] in read
    assert not read.rstrip().endswith(words[lost])
    assert f"({400 - lost} words)" in line


def test_long_lyrics_too(handler: AceStepHandler) -> None:
    assert handler.engine is not None
    lyrics = "\n".join(f"line number {number}" for number in range(2000))
    (line,) = unheard(handler.engine.tokenizer, replace(SHORT, lyrics=lyrics))
    assert "lyrics are longer than the 2048 tokens" in line
