"""What HTTP clients send becomes parameters: every spelling, alias, nest and default."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from acestep.errors import RequestError
from acestep.inference import SampleResult
from acestep.server.asking import Asked, understood
from acestep.server.fields import FIELDS, PARAMS, schema, sorted_out
from acestep.song.params import GenerationConfig, GenerationParams, words_and_numbers
from acestep.song.request import Request


def request_of(asked: Asked) -> Request:
    return words_and_numbers(*asked.built())


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def test_defaults_are_the_apis() -> None:
    asked = understood({"prompt": "piano"})
    request = request_of(asked)
    assert request.batch_size == 2
    assert (request.steps, request.guidance_scale, request.shift) == (None, None, None)
    assert (request.language, request.task, request.infer_method) == ("en", "text2music", "ode")
    planning = request.planning
    assert (planning.codes, planning.caption, planning.language) == (False, True, True)
    assert (planning.temperature, planning.guidance_scale, planning.top_p) == (0.85, 2.5, 0.9)
    assert asked.built()[1].audio_format == "mp3"
    assert (asked.query, asked.rewrite, asked.model) == (None, False, "")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_spelling_of_every_field(field: Any) -> None:
    value = {"text": "2", "number": 0.5, "whole number": 2, "flag": True, "list": ["2"]}[field.kind]
    spellings = (field.name, camel(field.name), field.name.replace("_", "-"), *field.aliases)
    for spelled in spellings:
        assert sorted_out({spelled: value}) == ({field.name: value}, []), spelled
        assert understood({"metas": {spelled: value}}) == understood({field.name: value})


def test_every_field_of_the_python_api_is_there() -> None:
    ours = {(field.where, field.attribute) for field in FIELDS}
    params = {field.name for field in dataclasses.fields(GenerationParams)}
    assert {name for where, name in ours if where == PARAMS} == params - {
        "src_audio", "reference_audio",
    }  # fmt: skip
    config = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert {name for where, name in ours if where == "config"} == config
    assert set(schema()["properties"]) >= {field.name for field in FIELDS}


@pytest.mark.parametrize(
    ("payload", "field", "expected"),
    [
        ({"keyScale": "Am"}, "key", "A minor"),
        ({"metas": {"key": "F# minor"}}, "key", "F# minor"),
        ({"metadata": '{"timesignature": "6/8"}'}, "time_signature", "6"),
        ({"user_metadata": {"bpm": "120"}, "bpm": None}, "bpm", 120),
        ({"metas": {"bpm": 90}, "bpm": 100}, "bpm", 100),
        ({"bpm": 0}, "bpm", None),
        ({"audioDuration": "45"}, "duration", 45.0),
        ({"target_duration": -1}, "duration", None),
        ({"duration": 0}, "duration", None),
        ({"timesteps": "0.97,0.76,0.6,0"}, "timesteps", (0.97, 0.76, 0.6)),
        ({"seed": "7,8"}, "seeds", (7, 8)),
        ({"seed": 7}, "seeds", (7, 8)),
        ({"seed": "7", "use_random_seed": "false"}, "seeds", (7, 8)),
        ({"seeds": [4, 9]}, "seeds", (4, 9)),
        ({"instrumental": "true"}, "lyrics", "[Instrumental]"),
        ({"inferenceSteps": "12"}, "steps", 12),
    ],
)
def test_values_as_clients_write_them(payload: dict[str, Any], field: str, expected: Any) -> None:
    assert getattr(request_of(understood({"prompt": "x", **payload})), field) == expected


def test_seeds_are_drawn_where_that_is_said_outright() -> None:
    asked = understood({"prompt": "x", "seed": 7, "useRandomSeed": True})
    assert request_of(asked).seeds != (7, 8)


def test_words_for_flags_from_forms() -> None:
    asked = understood({"prompt": "x", "allow_lm_batch": "false", "useCotCaption": "no"})
    assert asked.config["allow_lm_batch"] is False
    assert not request_of(asked).planning.caption
    with pytest.raises(RequestError, match="neither yes nor no"):
        understood({"thinking": "perhaps"})


def test_what_is_not_known_is_named() -> None:
    asked = understood({"prompt": "x", "colour": "red", "ai_token": "k"})
    (notice,) = asked.notices
    assert "colour" in notice
    assert "ai_token" not in notice


def test_the_names_own_spelling_wins_over_an_alias() -> None:
    for payload in ({"prompt": "a", "caption": "b"}, {"caption": "b", "prompt": "a"}):
        assert understood(payload).params["caption"] == "a"
    assert understood({"prompt": "", "caption": "b"}).params["caption"] == "b"


def test_a_query_makes_a_sample() -> None:
    assert understood({"desc": "rain"}).query == "rain"
    assert understood({"sample_mode": True, "prompt": "rain"}).query == "rain"
    assert understood({"sample_mode": True}).query == "NO USER INPUT"
    sample = SampleResult(
        caption="rain on tin", lyrics="la", bpm=80, keyscale="C major", duration=60
    )
    asked = understood({"desc": "rain", "bpm": 100, "key_scale": "N/A"}).filled(sample)
    request = request_of(asked)
    assert (request.caption, request.bpm, request.key) == ("rain on tin", 100, "")
    assert (request.lyrics, request.duration, asked.query) == ("la", 60, None)


def test_a_rewriting_keeps_what_was_said() -> None:
    asked = understood({"prompt": "a", "lyrics": "la", "bpm": 100, "language": "de"})
    assert asked.metadata() == {"bpm": 100, "language": "de"}
    made = asked.filled(SampleResult(caption="b", lyrics="other"), keep_lyrics=True)
    assert (made.params["caption"], made.params["lyrics"]) == ("b", "la")


def test_it_survives_a_file() -> None:
    asked = understood({"prompt": "x", "seeds": [1, 2], "metas": {"bpm": 90}, "foo": 1})
    assert Asked.of(json.loads(json.dumps(asked.plain()))) == asked


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "prompt is empty"),
        ({"prompt": ["x"]}, "not text"),
        ({"prompt": "x", "bpm": 5}, "bpm"),
        ({"prompt": "x", "bpm": {"a": 1}}, "bpm"),
        ({"prompt": "x", "batch_size": 0}, "batch size"),
        ({"prompt": "x", "batch_size": 10**9}, "batch size"),
        ({"prompt": "x", "audio_format": "exe"}, "unknown audio format"),
        ({"prompt": "x", "task_type": "sing"}, "unknown task"),
        ({"prompt": "x", "task_type": "cover"}, "needs source audio"),
        ({"prompt": "x", "metas": 5}, "no JSON object"),
        ({"prompt": "x", "metas": "[1"}, "no JSON object"),
        ({"prompt": "x", "lm_repetition_penalty": 0}, "lm_repetition_penalty"),
        ({"prompt": "x", "seed": "abc"}, "seed"),
        ({"prompt": "x", "timesteps": {"a": 1}}, "timesteps"),
        ({"prompt": "a\x00b"}, "NUL"),
        ({"prompt": "x", "model": 7}, "not text"),
        ({"prompt": "x", "shift": "NaN"}, "shift"),
        ({"prompt": "x", "src_audio_path": ["a"]}, "not text"),
        ({"prompt": "x", "audio_loudness": 99}, "loudness"),
    ],
)
def test_what_cannot_be_made_is_refused_at_the_door(payload: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        understood(payload).check()


def test_what_can_be_made_passes() -> None:
    understood({"sample_mode": True}).check()
    understood({"lyrics": "[verse]\nla"}).check()
    understood({"prompt": "x", "task_type": "cover", "audio_codes": "<|audio_code_5|>"}).check()
    understood({"prompt": "x", "task_type": "repaint", "src_audio_path": "a.wav"}).check()
