"""Tests that what has no effect is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from acestep.inference import GenerationConfig, GenerationParams, make_request
from acestep.song.ignored import ignored

SONG = torch.zeros(2, 96000)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"src_audio": SONG, "task_type": "cover", "duration": 5}, "as long as its source, 2 s"),
        ({"lyrics": "la la", "instrumental": True}, "the lyrics are left out"),
        ({"repainting_start": 1.0}, "the repaint range is left out: the task is text2music"),
        ({"track_name": "vocals"}, "only extract and lego have one"),
        ({"complete_track_classes": "drums"}, "only complete takes them"),
        ({"audio_cover_strength": 0.5}, "neither source audio nor audio codes"),
        ({"timesteps": "1,0.5", "shift": 2.0}, "the shift is left out"),
        ({"timesteps": "1,0.5", "inference_steps": 30}, "the number of steps is left out"),
        ({"guidance_scale": 3.0}, "guidance in its weights"),
        ({"use_adg": True}, "guidance in its weights"),
    ],
)
def test_what_has_no_effect_is_said(fields: dict[str, Any], expected: str) -> None:
    params = GenerationParams(caption="x", **fields)
    request = make_request(params, GenerationConfig(batch_size=1))
    (line,) = ignored(params, request, is_turbo=True)
    assert expected in line


def test_nothing_is_said_of_what_is_used() -> None:
    plain = GenerationParams(caption="x", lyrics="[Instrumental]", instrumental=True)
    guided = GenerationParams(caption="x", guidance_scale=3.0, use_adg=True)
    for params in (plain, guided):
        request = make_request(params, GenerationConfig(batch_size=1))
        assert ignored(params, request, is_turbo=params is plain) == []
