"""Tests of what a request may hold."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.errors import RequestError
from acestep.gpu_config import get_gpu_config
from acestep.song.request import LANGUAGES, Request, audio_codes_in

GOOD = Request("warm piano", (1,))
SONG = torch.zeros(2, 48000)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"caption": " \n"}, "the prompt is empty"),
        ({"caption": "a\x00b"}, "the prompt holds a NUL character"),
        ({"lyrics": "\x00"}, "the lyrics holds a NUL"),
        ({"key": "H major"}, "unknown key 'H major'"),
        ({"key": "C"}, "unknown key 'C'"),
        ({"time_signature": "5"}, "unknown time signature '5'; choose from 2, 3, 4, 6"),
        ({"language": "xx"}, "unknown language 'xx'"),
        ({"duration": 0.4}, "duration 0.4 is out of range; expected 0.5 to 600 seconds"),
        ({"duration": 601.0}, "duration 601 is out of range"),
        ({"duration": float("nan")}, "duration nan is out of range"),
        ({"bpm": 29}, "bpm 29 is out of range; expected 30 to 300"),
        ({"steps": 0}, "number of steps 0"),
        ({"guidance_scale": -1.0}, "guidance scale -1"),
        ({"shift": 0.0}, "shift 0"),
        ({"cover_strength": 1.1}, "cover strength 1.1"),
        ({"seeds": ()}, "the batch is empty"),
        ({"seeds": (-1,)}, "seed -1 is out of range"),
        ({"seeds": (2**63,)}, "seed 9223372036854775808"),
        ({"cfg_interval": (0.5, 0.2)}, "guidance interval 0.5..0.2"),
        ({"infer_method": "magic"}, "unknown inference method 'magic'"),
        ({"timesteps": (0.5, 1.0)}, "timesteps must be falling"),
        ({"timesteps": ()}, "timesteps must be falling"),
        ({"timesteps": (1.0, 0.0)}, "timesteps must be falling"),
        ({"task": "remix"}, "cannot do the task 'remix'"),
        ({"task": "cover"}, "the task 'cover' needs source audio"),
        ({"task": "lego", "audio_codes": "<|audio_code_1|>"}, "needs source audio"),
        ({"audio_codes": "codes"}, "hold no <|audio_code_N|>"),
        ({"src_audio": torch.zeros(48000)}, r"source audio has shape \(48000,\)"),
        ({"reference_audio": torch.zeros(1, 9)}, r"reference audio has shape \(1, 9\)"),
        ({"reference_audio": torch.zeros(2, 9)}, "shorter than 0.1 s"),
        ({"src_audio": torch.zeros(2, 9)}, "length of the source audio"),
        ({"task": "repaint", "src_audio": SONG, "repaint": (2.0, None)}, "starts at 2 s"),
        ({"task": "repaint", "src_audio": SONG, "repaint": (0.5, 0.2)}, "ends before it starts"),
        ({"task": "repaint", "src_audio": SONG, "repaint": (-2.0, -1.0)}, "ends at -1 s, before"),
        ({"task": "repaint", "src_audio": SONG, "repaint": (1.0, None)}, "starts at 1 s"),
        ({"task": "lego", "src_audio": SONG, "repaint": (math.nan, None)}, "starts at nan s"),
        ({"task": "lego", "src_audio": SONG, "repaint": (0.0, math.inf)}, "new ends inf is out"),
        ({"task": "repaint", "src_audio": SONG, "repaint": (-300.0, 301.0)}, "new ends 601 is"),
        ({"repaint_mode": "bold"}, "unknown repaint mode 'bold'; choose from conservative, bal"),
        ({"repaint_strength": 1.5}, "repaint strength 1.5 is out of range; expected 0 to 1"),
        ({"repaint_latent_crossfade_frames": -1}, "repaint crossfade -1 is out of range"),
        ({"repaint_wav_crossfade_sec": 11.0}, "repaint crossfade 11 is out of range"),
    ],
)
def test_refusals(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(RequestError, match=expected) as caught:
        dataclasses.replace(GOOD, **changes).validated(ALL_TASKS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "F# minor", "time_signature": "6", "language": "yue", "bpm": 300},
        {"key": "B♭ major", "duration": 600.0},
        {"task": "cover", "audio_codes": "<|audio_code_1|>"},
        {"task": "extract", "caption": "", "src_audio": SONG},
        {"task": "repaint", "src_audio": SONG, "repaint": (0.0, 99.0)},
        {"task": "repaint", "src_audio": SONG, "repaint": (-5.0, 0.0)},
        {"task": "repaint", "src_audio": SONG, "repaint": (1.0, 9.0)},
        {"task": "lego", "src_audio": SONG, "repaint": (-5.0, None), "repaint_strength": 1},
        {"repaint_mode": "aggressive", "repaint_latent_crossfade_frames": 0},
        {"use_adg": True},
        {"timesteps": (1.0, 0.25)},
    ],
)
def test_acceptances(changes: dict[str, Any]) -> None:
    request = dataclasses.replace(GOOD, **changes)
    assert request.validated(ALL_TASKS) is request


@given(
    caption=st.text(min_size=1, max_size=40),
    lyrics=st.text(max_size=80),
    duration=st.floats(0.5, 600),
    bpm=st.integers(30, 300),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=12),
    language=st.sampled_from(LANGUAGES),
    memory=st.floats(0, 100),
    lm=st.booleans(),
)
def test_what_is_limited_is_within_the_limits(
    caption: str,
    lyrics: str,
    duration: float,
    bpm: int,
    seeds: list[int],
    language: str,
    memory: float,
    lm: bool,
) -> None:
    request = Request(caption, tuple(seeds), lyrics, duration, bpm, language=language)
    if not caption.strip() or "\x00" in caption + lyrics:
        with pytest.raises(RequestError):
            request.validated(ALL_TASKS)
        return
    config = get_gpu_config(memory)
    limited, warnings = request.validated(ALL_TASKS).limited(config, lm)
    assert limited.duration is not None
    assert limited.duration <= config.max_duration(lm)
    assert limited.batch_size <= config.max_batch_size(lm)
    assert limited.seeds == request.seeds[: limited.batch_size]
    changed = (limited.duration != duration) + (limited.batch_size != len(seeds))
    assert len(warnings) == changed


def test_counting_codes() -> None:
    assert audio_codes_in("<|audio_code_1|> x <|audio_code_63999|><|audio_code_|>") == [1, 63999]


def test_codes_are_for_songs_of_their_own() -> None:
    source = torch.zeros(2, 480000)
    for task in ("repaint", "lego", "extract", "complete"):
        request = Request("x", (1,), task=task, src_audio=source, audio_codes="<|audio_code_1|>")
        with pytest.raises(RequestError, match="works on audio, not on audio codes"):
            request.validated((task,))


def test_a_source_that_the_task_does_not_take_is_said() -> None:
    request = Request("x", (1,), src_audio=torch.zeros(2, 480000), duration=5.0)
    left, warnings = request.limited(get_gpu_config(80), False)
    assert left.src_audio is None
    assert left.duration == 5.0
    assert "the source audio is left out" in warnings[0]


def test_a_source_that_is_no_audio_is_refused() -> None:
    source = torch.full((2, 480000), float("nan"))
    with pytest.raises(RequestError, match="NaN or infinite"):
        Request("x", (1,), task="cover", src_audio=source).validated(("cover",))
