"""The prompt's text, string for string: against diffusers' writing of it, and the original's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.diffusion.prompts import instruction_of, lyrics_text, prompt_text
from acestep.song.params import GenerationConfig, GenerationParams, make_request
from acestep.song.request import Request

CAPTIONS = ("warm lo-fi piano, rain", "华语流行, 钢琴", "a\nb  c ", "“quotes” & <tags> {braces}")
LYRICS = ("", "[Instrumental]", "[verse]\nla la\n\n[chorus]\nla", "[主歌]\n月亮代表我的心")
METAS = (
    (None, "", ""),
    (90, "C major", "4"),
    (300, "F♯ minor", "6"),
    (30, "Bb major", ""),
)
INPUTS = list(itertools.product(CAPTIONS, LYRICS, METAS))
"""64 requests, each also under the six tasks' instructions."""


@pytest.mark.parametrize("task", ALL_TASKS)
def test_the_text_is_diffusers_own(diffusers_pipeline: Any, task: str) -> None:
    for number, (caption, lyrics, (bpm, key, metre)) in enumerate(INPUTS):
        seconds, language = 0.5 + 9.37 * number, ("en", "zh", "unknown")[number % 3]
        tracks: dict[str, Any] = (
            {"track_name": "drums", "track_classes": ("bass", "vocals")} if number % 2 else {}
        )
        request = Request(
            caption, (1,), lyrics, None, bpm, key, metre, language, task=task, **tracks
        )
        instruction = diffusers_pipeline._get_task_instruction(
            task, request.track_name, list(request.track_classes)
        )
        assert instruction_of(request, task) == instruction
        wanted = diffusers_pipeline._format_prompt(
            caption, lyrics, language, seconds, instruction, bpm, key, metre
        )
        assert (prompt_text(request, task, seconds), lyrics_text(request)) == wanted


def test_an_instruction_of_one_s_own_ends_in_a_colon(diffusers_pipeline: Any) -> None:
    for own in ("Sing", "Sing:", " Sing: "):
        text = prompt_text(Request("x", (1,), instruction=own), "text2music", 9)
        assert text == diffusers_pipeline._format_prompt("x", "", "en", 9, own.strip())[0]


# What the original hands on as it was typed, and what stands in our prompt.
NORMALISED = {
    "keyscale": [("Am", "A minor"), ("C Major", "C major"), ("f# MIN", "F# minor"), ("N/A", "N/A")],
    "timesignature": [("4/4", "4"), ("6/8", "6"), ("3", "3"), ("N/A", "N/A")],
    "bpm": [("120", "120"), ("120.0", "120"), (" ", "N/A"), ("N/A", "N/A")],
}
FIELDS = {"keyscale": "keyscale", "timesignature": "timesignature", "bpm": "bpm"}


@pytest.mark.parametrize("field", NORMALISED)
def test_what_is_brought_into_one_form_on_purpose(field: str) -> None:
    for typed, written in NORMALISED[field]:
        params = GenerationParams(caption="x", **{field: typed})
        text = prompt_text(make_request(params, GenerationConfig(batch_size=1)), "text2music", 9)
        assert f"- {FIELDS[field]}: {written}\n" in text
