"""The built-in language model, loaded once a file, and held to short texts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from acestep.llm_inference import LLMHandler


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
