"""Tests of what a machine can hold: lengths, songs at a time, and turns put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from acestep.errors import RequestError
from acestep.gpu_config import get_gpu_config, host_need_gb
from acestep.handler import AceStepHandler
from acestep.inference import GenerationConfig, GenerationParams, run
from acestep.song.limits import Room, together, turns, within
from acestep.song.request import Request

HOST = Room(get_gpu_config(80.0), lm=False, on_host=True, free=64.0, width=128)
SONG = Request("piano", tuple(range(12)), duration=600.0)


def test_a_large_host_has_the_models_own_limits() -> None:
    assert within(SONG, HOST, fit=False) == (SONG, [])
    assert [part.batch_size for part in turns(SONG, HOST)] == [8, 4]
    assert HOST.longest() == 600


def test_the_need_grows_with_the_music_and_the_width() -> None:
    needs = [
        host_need_gb(10, 1, 128), host_need_gb(600, 1, 128), host_need_gb(600, 8, 128),
        host_need_gb(600, 8, 2048),
    ]  # fmt: skip
    assert needs == sorted(set(needs))


def test_a_small_host_makes_fewer_at_a_time_and_shorter_only_when_asked() -> None:
    alone = host_need_gb(600, 1, HOST.width)
    # As much as two songs need, and the share that is left alone.
    room = replace(HOST, free=host_need_gb(600, 2, HOST.width) / 0.9 + 1e-6)
    assert [part.seeds for part in turns(SONG, room)] == [(n, n + 1) for n in range(0, 12, 2)]
    small = replace(HOST, free=host_need_gb(100, 1, HOST.width) / 0.9 + 1e-6)
    one = replace(SONG, seeds=(1,))
    with pytest.raises(RequestError, match=rf"needs {alone:.1f} GiB .* ask for 100 s.* --fit"):
        within(one, small, fit=False)
    shorter, notices = within(one, small, fit=True)
    assert shorter.duration == 100.0
    assert notices[0].endswith("making 100 s")
    with pytest.raises(RequestError, match="close other programs"):
        within(one, replace(HOST, free=0.01), fit=True)


def test_more_songs_than_memory_holds_are_refused() -> None:
    many = replace(SONG, seeds=tuple(range(1000)))
    with pytest.raises(RequestError, match=r"1000 songs of 600 s are .* acestep batch"):
        within(many, HOST, fit=True)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"duration": None}, 30.0),
        ({"task": "cover", "src_audio": torch.zeros(2, 96000)}, 2.0),
        ({"task": "repaint", "src_audio": torch.zeros(2, 96000), "repaint": (-1.0, 3.0)}, 4.0),
        ({"task": "repaint", "src_audio": torch.zeros(2, 96000), "repaint": (1.0, None)}, 2.0),
        ({"audio_codes": "<|audio_code_1|>" * 50}, 10.0),
        ({"audio_codes": "<|audio_code_1|>" * 50, "duration": 4.0}, 4.0),
        ({"song_codes": ("<|audio_code_1|>",) * 12, "duration": None}, 0.2),
    ],
)
def test_how_long_songs_will_be(changes: dict[str, Any], seconds: float) -> None:
    assert replace(SONG, **changes).seconds == seconds


def test_neither_codes_nor_sources_escape() -> None:
    room = replace(HOST, config=get_gpu_config(4.0), on_host=False)
    coded = Request("x", (1,), audio_codes="<|audio_code_1|>" * 1000)
    with pytest.raises(RequestError, match="200 s is above the limit of 180 s for tier1"):
        within(coded, room, fit=False)
    assert within(coded, room, fit=True)[0].seconds == 180
    cover = Request("x", (1,), task="cover", src_audio=torch.zeros(1).expand(2, 200 * 48000))
    with pytest.raises(RequestError, match="give shorter audio"):
        within(cover, room, fit=True)
    many = Request("x", (1,), audio_codes="<|audio_code_1|>" * 100_000)
    with pytest.raises(RequestError, match="length of the audio codes 20000 is out of range"):
        many.validated(("text2music",))


def test_turns_are_the_songs_of_one_batch(
    handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told of all the way; equal to songs made together up to rounding."""
    params = GenerationParams(caption="flute", duration=0.6, inference_steps=2, seed=5)
    config, told = GenerationConfig(batch_size=3, use_random_seed=False), []
    whole = run(handler, params, config)
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "4")
    parts = run(handler, params, config, lambda fraction, desc: told.append(fraction))
    assert [song.seed for song in parts.songs] == [5, 6, 7] == list(parts.request.seeds)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(parts.tensors[name], tensor, atol=1e-4, rtol=0)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert together(SONG, [whole]) is whole
