"""Tests of the seam: everything above runs on an engine that knows nothing of torch's devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy_engine import NumpyEngine
from safetensors.torch import save_file

from acestep.checkpoint.kinds import Checkpoint
from acestep.device import resolve
from acestep.engines.protocol import Engine
from acestep.errors import RequestError
from acestep.handler import AceStepHandler
from acestep.song.request import Request

SONG = Request("a harp", (3, 4), "la la", duration=6.3, steps=4, shift=3.0, guidance_scale=4.0)


@pytest.fixture
def numpy_handler(handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch) -> AceStepHandler:
    """A handler that makes music in NumPy, with a batch allowed."""
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "80")
    assert handler.engine is not None
    made = AceStepHandler()
    engine: Engine = NumpyEngine(handler.engine.tokenizer, is_turbo=False)
    made.adopt(engine, resolve("cpu"), Checkpoint("acestep-v15-base-numpy", Path(), "original"))
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"infer_method": "sde"},
        {"use_adg": True},
        {"cfg_interval": (0.4, 0.8)},
        {"task": "cover", "cover_strength": 0.5},
        {"task": "repaint", "repaint": (2.0, 7.0)},
        {"task": "lego", "repaint": (-1.0, 3.0), "repaint_mode": "conservative"},
        {"task": "extract", "track_name": "drums"},
        {"task": "complete", "track_classes": ("drums", "bass")},
        {"audio_codes": "<|audio_code_3|>" * 40, "cover_strength": 0.5},
        {"song_codes": ("<|audio_code_3|>" * 30, "<|audio_code_99|>" * 31)},
        {"reference_audio": 0.1 * torch.ones(2, 96000)},
        {"duration": 0.6, "timesteps": (0.9, 0.4)},
    ],
    ids=lambda changes: "-".join(f"{k}" for k in changes) or "plain",
)
def test_every_task_runs_on_another_engine(
    numpy_handler: AceStepHandler, song: torch.Tensor, changes: dict[str, Any]
) -> None:
    needs_source = changes.get("task", "text2music") != "text2music"
    source = song.repeat(1, 3) if needs_source else None
    request = dataclasses.replace(SONG, src_audio=source, **changes)
    made = numpy_handler.generate(request)
    assert [item.seed for item in made.songs] == [3, 4]
    assert all(torch.isfinite(item.audio).all() for item in made.songs)
    alone = numpy_handler.generate(
        dataclasses.replace(request, seeds=(4,), song_codes=request.song_codes[1:])
    )
    torch.testing.assert_close(alone.songs[0].audio, made.songs[1].audio, atol=1e-5, rtol=0)
    engine: Any = numpy_handler.engine
    assert engine.calls.count("leave") == 2
    assert engine.calls.count("after_step") == 2 * (2 if request.timesteps else 4)


def test_a_song_s_length_is_to_the_sample(numpy_handler: AceStepHandler) -> None:
    for seconds in (0.5, 5.13, 6.9, 10.37):
        made = numpy_handler.generate(dataclasses.replace(SONG, duration=seconds))
        assert made.songs[0].audio.shape == (2, round(seconds * 48000))


def test_lyrics_are_aligned_by_another_engine(numpy_handler: AceStepHandler) -> None:
    from acestep.alignment.service import song_inputs
    from acestep.song.outcome import extra_outputs

    made = numpy_handler.generate(dataclasses.replace(SONG, seeds=(3,)))
    inputs = song_inputs(extra_outputs(made))
    answer = numpy_handler.get_lyric_timestamp(**inputs, custom_layers_config={0: [0]})
    assert answer["success"], answer["error"]
    assert "la la" in answer["lrc_text"]


def test_an_engine_without_adapters_says_so(numpy_handler: AceStepHandler, tmp_path: Path) -> None:
    save_file({"a.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "my.safetensors")
    with pytest.raises(RequestError, match="NumpyEngine takes no adapters"):
        numpy_handler.load_lora(tmp_path / "my.safetensors")


def test_codes_and_closing(numpy_handler: AceStepHandler, song: torch.Tensor) -> None:
    assert len(numpy_handler.codes_of(song)) == 10
    engine: Any = numpy_handler.engine
    numpy_handler.unload()
    assert engine.closed
    assert numpy_handler.engine is None
    assert numpy_handler.tasks == ()
    assert isinstance(engine.array(song), np.ndarray)
