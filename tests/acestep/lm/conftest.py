"""The built-in language model, loaded once a file, and held to short texts."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from acestep.llm_inference import LLMHandler
from acestep.lm import tokens


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Read the tokenizer once: its 64 thousand added tokens take seconds each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "load_tokenizer", functools.cache(tokens.load_tokenizer))
        yield


@pytest.fixture(scope="module")
def planner() -> Iterator[LLMHandler]:
    """A handler with the built-in model on the CPU, quick because its texts are short."""
    made = LLMHandler()
    message, ok = made.initialize(None, "demo", device="cpu")
    assert ok, message
    assert message.endswith("on cpu (float32), backend pt")
    made.caption_lines, made.line_length, made.lyric_lines = 2, 12, 3
    yield made
    made.unload()
