"""Prompts: the public formats, letter for letter and token for token."""

from __future__ import annotations

from typing import Any

import pytest

from acestep.demo.recipe import make_tokenizer
from acestep.errors import CheckpointError
from acestep.lm.demo import CHAT_TEMPLATE
from acestep.lm.prompts import Prompt, Prompts

GENERATE = "Generate audio semantic tokens based on the given conditions:"
UNDERSTAND = "Understand the given musical conditions and describe the audio semantics accordingly:"
INSPIRE = "Expand the user's input into a more detailed and specific musical description:"
FORMAT = "Format the user's input into a more detailed and specific musical description:"
COT = {"bpm": 120, "duration": 30.0, "keyscale": "C major", "timesignature": "4"}
COT_TEXT = "<think>\nbpm: 120\nduration: 30\nkeyscale: C major\ntimesignature: 4\n</think>"
EMPTY = "<think>\n</think>"
NONE = "NO USER INPUT"


def asked(instruction: str, user: str) -> str:
    return (
        f"<|im_start|>system\n# Instruction\n{instruction}\n\n<|im_end|>\n"
        f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    )


def opened(user: str, block: str) -> str:
    return f"{asked(GENERATE, user)}{block}<|im_end|>\n"


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    tokenizer = make_tokenizer(600)
    tokenizer.chat_template = CHAT_TEMPLATE
    return Prompts(tokenizer)


# (method, arguments, keywords, expected conditional text, expected unconditional text)
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str | None]] = [
    ("plan", ("a", "b"), {}, asked(GENERATE, "# Caption\na\n\n# Lyric\nb\n"), None),
    ("plan", ("a", ""), {}, asked(GENERATE, "# Caption\na\n\n# Lyric\n\n"), None),
    ("plan", ("", "b"), {}, asked(GENERATE, "# Caption\n\n\n# Lyric\nb\n"), None),
    ("plan", ("a", "b\r\nc"), {}, asked(GENERATE, "# Caption\na\n\n# Lyric\nb\nc\n"), None),
    ("plan", ("夜の雨", "جاز"), {}, asked(GENERATE, "# Caption\n夜の雨\n\n# Lyric\nجاز\n"), None),
    ("plan", ("a<|im_end|>", "</think>b"), {}, asked(GENERATE, "# Caption\na\n\n# Lyric\nb\n"), None),
    ("plan", ("a", "b"), {"guided": True},
     asked(GENERATE, "# Caption\na\n\n# Lyric\nb\n"), asked(GENERATE, "# Lyric\nb\n")),
    ("plan", ("a", "b"), {"guided": True, "negative_prompt": NONE},
     asked(GENERATE, "# Caption\na\n\n# Lyric\nb\n"), asked(GENERATE, "# Lyric\nb\n")),
    ("plan", ("a", "b"), {"guided": True, "negative_prompt": " "},
     asked(GENERATE, "# Caption\na\n\n# Lyric\nb\n"), asked(GENERATE, "# Lyric\nb\n")),
    ("plan", ("a", "b"), {"guided": True, "negative_prompt": "noise"},
     asked(GENERATE, "# Caption\na\n\n# Lyric\nb\n"),
     asked(GENERATE, "# Caption\nnoise\n\n# Lyric\nb\n")),
    ("plan", ("a", "b"), {"negative_prompt": "noise"},
     asked(GENERATE, "# Caption\na\n\n# Lyric\nb\n"), None),
    ("codes", ("a", "b", COT), {}, opened("# Caption\na\n\n# Lyric\nb\n", COT_TEXT), None),
    ("codes", ("a", "b", {}), {}, opened("# Caption\na\n\n# Lyric\nb\n", EMPTY), None),
    ("codes", ("a", "b", COT), {"guided": True},
     opened("# Caption\na\n\n# Lyric\nb\n", COT_TEXT), opened("# Caption\na\n\n# Lyric\nb\n", EMPTY)),
    ("codes", ("a", "b", COT), {"guided": True, "negative_prompt": NONE},
     opened("# Caption\na\n\n# Lyric\nb\n", COT_TEXT), opened("# Caption\na\n\n# Lyric\nb\n", EMPTY)),
    ("codes", ("a", "b", COT), {"guided": True, "negative_prompt": "noise"},
     opened("# Caption\na\n\n# Lyric\nb\n", COT_TEXT),
     opened("# Caption\nnoise\n\n# Lyric\nb\n", EMPTY)),
    ("codes", ("a", "b", {"language": "en", "caption": "x" * 80 + " " + "y" * 50}), {},
     opened("# Caption\na\n\n# Lyric\nb\n",
            f"<think>\ncaption: {'x' * 80}\n  {'y' * 50}\nlanguage: en\n</think>"), None),
    ("understand", ("<|audio_code_1|><|audio_code_2|>",), {},
     asked(UNDERSTAND, "<|audio_code_1|><|audio_code_2|>"), None),
    ("inspire", ("a rainy night", False), {},
     asked(INSPIRE, "a rainy night\n\ninstrumental: false"), None),
    ("inspire", ("a rainy night", True), {},
     asked(INSPIRE, "a rainy night\n\ninstrumental: true"), None),
    ("format", ("a", "b"), {}, asked(FORMAT, "# Caption\na\n\n# Lyric\nb"), None),
    ("format", ("", ""), {}, asked(FORMAT, "# Caption\n\n\n# Lyric\n"), None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "given", "keywords", "first", "second"), CASES)
def test_prompts_are_the_public_ones(
    prompts: Prompts,
    method: str,
    given: tuple[Any, ...],
    keywords: dict[str, Any],
    first: str,
    second: str | None,
) -> None:
    made: Prompt = getattr(prompts, method)(*given, **keywords)
    tokenizer = prompts.tokenizer
    assert tokenizer.decode(made.conditional) == first
    assert made.conditional == tokenizer(first, add_special_tokens=False).input_ids
    if second is None:
        assert made.unconditional is None
    else:
        assert made.unconditional == tokenizer(second, add_special_tokens=False).input_ids


def test_a_template_without_final_newline_gets_one() -> None:
    tokenizer = make_tokenizer(600)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    assert Prompts(tokenizer).text("generate", "u", "x").endswith("|u|x|\n")


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{% for %}"])
def test_a_bad_template_is_a_checkpoint_error(template: str | None) -> None:
    tokenizer = make_tokenizer(600)
    tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match="chat template"):
        Prompts(tokenizer).text("generate", "u")
