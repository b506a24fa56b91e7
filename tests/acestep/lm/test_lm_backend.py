"""The seam between the planner and its engines: an engine of no library will do."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from acestep.errors import RequestError
from acestep.lm import describing, planner
from acestep.lm.backend import CodeJob, OnToken, TextJob
from acestep.lm.demo import lm_tokenizer
from acestep.lm.sampling import Sampling
from acestep.lm.tokens import AudioTokens
from acestep.lm.writer import Writer

TEXT = "<think>\nbpm: 88\ncaption: rain\nlanguage: pt\n</think>"
LYRICS = "\n\n# Lyric\nla la<|im_end|>"


class Reciter:
    """An engine without a model: it recites one text, and counts for codes."""

    name = "reciter"

    def __init__(self) -> None:
        self.tokenizer: Any = lm_tokenizer(600)
        ids = self.tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<|im_end|>"])
        first = self.tokenizer.convert_tokens_to_ids("<|audio_code_0|>")
        self.tokens = AudioTokens(tuple(range(first, first + 64000)), *ids, first)
        self.jobs: list[TextJob | CodeJob] = []

    def text(self, job: TextJob, on_token: OnToken) -> list[list[int]]:
        self.jobs.append(job)
        words = TEXT + LYRICS if job.end_id == self.tokens.end else TEXT
        made = self.tokenizer(words, add_special_tokens=False).input_ids
        assert made[-1] == job.end_id
        on_token(len(made), job.limit)
        return [made for _ in job.prompts]

    def codes(self, job: CodeJob, on_token: OnToken) -> list[list[int]]:
        self.jobs.append(job)
        on_token(max(job.counts), max(job.counts))
        return [
            [seed + n for n in range(count)]
            for seed, count in zip(job.seeds, job.counts, strict=True)
        ]

    def close(self) -> None:
        self.jobs.clear()


@pytest.fixture(scope="module")
def engine() -> Reciter:
    return Reciter()


def writer_of(engine: Reciter) -> Writer:
    engine.jobs.clear()
    return Writer(engine, 600, 3, 80, 3, lambda done, most: None)


def request(**changes: Any) -> planner.PlanRequest:
    values: dict[str, Any] = {
        "caption": "rain",
        "lyrics": "la",
        "infer_type": "llm_dit",
        "sampling": Sampling(guidance=2.0),
        "negative_prompt": "noise",
        "constrained": True,
        "known": {"duration": 1},
        "wanted": planner.wanted_fields(True, True, True),
        "batch": 2,
        "seeds": [7],
    }
    return planner.PlanRequest(**values | changes)


def test_a_plan_by_any_engine(engine: Reciter) -> None:
    made = planner.plan(writer_of(engine), request())
    assert made["success"]
    fields = {"bpm": 88, "caption": "rain", "language": "pt", "duration": 1}
    assert made["metadata"] == [fields, fields]
    assert made["audio_codes"] == [
        "".join(f"<|audio_code_{number}|>" for number in range(seed, seed + 5)) for seed in (7, 8)
    ]
    assert made["extra_outputs"] == {"cot": [TEXT, TEXT], "seeds": [7, 8]}
    text, code = engine.jobs
    assert isinstance(text, TextJob)
    assert text.grammar is not None
    assert isinstance(code, CodeJob)
    assert list(code.counts) == [5, 5]
    for job in engine.jobs:
        assert list(job.seeds) == [7, 8]
        for prompt in job.prompts:
            numbers = [*prompt.conditional, *(prompt.unconditional or ())]
            assert prompt.unconditional
            assert all(type(number) is int for number in numbers)


def test_metadata_alone_asks_for_no_codes(engine: Reciter) -> None:
    made = planner.plan(writer_of(engine), request(infer_type="dit", batch=1, constrained=False))
    assert made["audio_codes"] == ""
    (job,) = engine.jobs
    assert isinstance(job, TextJob)
    assert job.grammar is None


def test_a_description_by_any_engine(engine: Reciter) -> None:
    use = describing.inspire("a rainy night", instrumental=False)
    made = describing.describe(writer_of(engine), use, {"bpm": 90}, Sampling(), {"seed": 3})
    assert made == {"bpm": 90, "caption": "rain", "language": "pt", "lyrics": "la la"}
    (job,) = engine.jobs
    assert list(job.seeds) == [3]


def test_a_wrong_request_reaches_no_engine(engine: Reciter) -> None:
    for changes in ({"infer_type": "both"}, {"batch": -1}, {"known": {"bpm": 1}}):
        with pytest.raises(RequestError):
            planner.plan(writer_of(engine), request(**changes))
        assert not engine.jobs
    with pytest.raises(RequestError, match="query is empty"):
        describing.describe(writer_of(engine), describing.inspire(" ", False), {}, Sampling(), {})
    assert not engine.jobs


def test_the_seam_imports_no_library() -> None:
    """An engine that does not need torch can be written against it."""
    code = "import sys, acestep.lm.backend; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
