"""What a planner is asked for and what it adds, with one that writes down how it was called."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from acestep.errors import GenerationError
from acestep.song.planning import metadata_of, plan, plans
from acestep.song.request import Planning, Request

REQUEST = Request("warm piano", (3, 4), "la", duration=12.0, key="A minor")
CODES = "<|audio_code_1|>" * 5
ANSWER = {"caption": "a warm piano", "bpm": 90, "keyscale": "A minor", "duration": 12}


class Scripted:
    """Answers as a language model would, and remembers what it was asked."""

    llm_initialized = True

    def __init__(self, error: str | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error = error

    def generate_with_stop_condition(self, *args: Any, **keywords: Any) -> dict[str, Any]:
        caption, lyrics, kind = args
        self.calls.append({"caption": caption, "lyrics": lyrics, "kind": kind, **keywords})
        songs = keywords.get("batch_size", 1)
        known = {k: v for k, v in keywords["user_metadata"].items() if v not in (None, "")}
        metadata = {**ANSWER, **known} if kind == "dit" else {"duration": 30, **known}
        codes = [f"<|audio_code_{seed}|>" for seed in keywords["seeds"]]
        return {
            "metadata": metadata if songs == 1 else [metadata] * songs,
            "audio_codes": codes[0] if songs == 1 else codes,
            "success": self.error is None,
            "error": self.error,
        }

    @property
    def kinds(self) -> list[str]:
        return [call["kind"] for call in self.calls]


def asked(**changes: Any) -> Request:
    return dataclasses.replace(REQUEST, planning=dataclasses.replace(Planning(), **changes))


@pytest.mark.parametrize(("together", "calls"), [(1, 3), (2, 2), (8, 2)])
def test_metadata_once_and_codes_for_each_song(together: int, calls: int) -> None:
    planner = Scripted()
    made = plan(planner, asked(songs_at_once=together))
    assert len(planner.calls) == calls
    assert planner.kinds == ["dit", *["llm_dit"] * (calls - 1)]
    assert made.song_codes == ("<|audio_code_3|>", "<|audio_code_4|>")
    assert (made.caption, made.bpm, made.duration, made.planned) == ("a warm piano", 90, 12.0, True)
    assert metadata_of(made)["keyscale"] == "A minor"


def test_without_thinking_it_still_fills_in_and_makes_no_codes() -> None:
    planner = Scripted()
    made = plan(planner, asked(codes=False))
    assert planner.kinds == ["dit"]
    assert made.song_codes == ()
    assert (made.caption, made.bpm) == ("a warm piano", 90)


@pytest.mark.parametrize("codes", [{"audio_codes": CODES}, {"song_codes": (CODES, CODES * 2)}])
def test_the_users_own_codes_stand(codes: dict[str, Any]) -> None:
    planner = Scripted()
    request = dataclasses.replace(REQUEST, duration=None, **codes)
    made = plan(planner, request)
    assert planner.kinds == ["dit"]
    assert (made.audio_codes, made.song_codes) == (request.audio_codes, request.song_codes)
    assert made.caption == "a warm piano"
    assert made.duration is None, "the codes have their own length"


def test_the_settings_reach_the_planner() -> None:
    planner = Scripted()
    told = asked(
        metas=False, language=False, temperature=0.1, guidance_scale=3.0, top_k=5, top_p=0.5,
        negative_prompt="noise", constrained=False,
    )  # fmt: skip
    told_of: list[float] = []
    plan(planner, told, progress=lambda fraction, desc: told_of.append(fraction))
    first, second, _ = planner.calls
    assert first["use_cot_caption"]
    assert not first["use_cot_metas"]
    assert not first["use_cot_language"]
    assert not second["use_cot_caption"]
    for call in planner.calls:
        assert (call["temperature"], call["cfg_scale"], call["top_k"], call["top_p"]) == (
            0.1, 3.0, 5, 0.5,
        )  # fmt: skip
        assert call["negative_prompt"] == "noise"
        assert call["use_constrained_decoding"] is False
        call["progress"](1.0, desc="planning")
    words, *_, last = told_of
    assert 0 < words < 1
    assert last == 1.0, "the bar ends with the last song's codes"
    assert told_of == sorted(told_of)


def test_the_planner_says_how_long_where_nobody_does() -> None:
    made = plan(Scripted(), dataclasses.replace(asked(metas=False), duration=None))
    assert made.duration == 12.0


@pytest.mark.parametrize(
    ("changes", "loaded", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"task": "cover"}, True, False),
        ({"planning": Planning(codes=False)}, True, True),
        ({"planning": Planning(False, False, False, False)}, True, False),
        ({"audio_codes": CODES}, True, True),
    ],
)
def test_whether_it_plans(changes: dict[str, Any], loaded: bool, expected: bool) -> None:
    planner = Scripted()
    planner.llm_initialized = loaded
    assert plans(planner, dataclasses.replace(REQUEST, **changes)) is expected


def test_its_failure_is_the_songs() -> None:
    with pytest.raises(GenerationError, match="the language model: no luck"):
        plan(Scripted("no luck"), REQUEST)
