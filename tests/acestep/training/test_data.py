"""Tests of training data: what a folder must hold, and that nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import RequestError
from acestep.handler import AceStepHandler
from acestep.training import data
from acestep.training.data import Clip, find_examples, prepare


def test_descriptions_from_text_and_json(songs: Path) -> None:
    found = find_examples(songs)
    assert [(e.path.name, e.caption, e.bpm) for e in found] == [
        ("a.wav", "a low hum", None),
        ("b.wav", "a hum", None),
        ("c.wav", "a high hum", 90),
    ]


def test_json_counts_before_text(songs: Path) -> None:
    (songs / "a.json").write_text(json.dumps({"caption": "from json"}))
    assert find_examples(songs)[0].caption == "from json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "has no 'caption'"),
        ('{"caption": "x", "tempo": 90}', "unknown field 'tempo'; known are bpm, caption"),
        ('{"caption": "x", "bpm": "fast"}', "'bpm' is 'fast'; expected text, or a number"),
        ('{"caption": "x", "bpm": true}', "'bpm' is True"),
        ('{"caption": "x", "bpm": 4000}', "bpm 4000 is out of range"),
        ('{"caption": "x", "timesignature": "5"}', "timesignature '5' is unknown"),
        ('{"caption": "x", "language": "xx"}', "language 'xx' is unknown"),
    ],
)
def test_wrong_descriptions(songs: Path, text: str, message: str) -> None:
    (songs / "c.json").write_text(text)
    with pytest.raises(RequestError, match=message):
        find_examples(songs)


def test_missing_things(songs: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such folder"):
        find_examples(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RequestError, match=r"no audio found; put files ending in \.wav"):
        find_examples(empty)
    (songs / "a.txt").write_text("  \n")
    with pytest.raises(RequestError, match="holds no caption"):
        find_examples(songs)
    (songs / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RequestError, match="not readable as UTF-8"):
        find_examples(songs)
    (songs / "a.txt").unlink()
    with pytest.raises(RequestError, match=r"has no description; write its caption to a\.txt"):
        find_examples(songs)


def prepared(songs: Path, handler: AceStepHandler, cache: Path, identity: str = "x") -> list[Clip]:
    return prepare(find_examples(songs), handler.pipeline, handler.policy, cache, identity)


def test_clips_hold_what_inference_computes(
    songs: Path, base_handler: AceStepHandler, tmp_path: Path
) -> None:
    """The condition is that of a request in the same words, token for token."""
    clip = prepared(songs, base_handler, tmp_path / "cache")[2]
    audio = data.audio_files.read(songs / "c.wav")
    frames = -(-audio.shape[-1] // 1920)
    assert clip.latents.shape[1] in (frames, frames - 1)
    made = base_handler.generate_music(
        "a high hum", bpm=90, audio_duration=1.8, inference_steps=1, guidance_scale=1.0, seed=1
    )
    told = made["extra_outputs"]["encoder_hidden_states"]
    assert clip.condition.shape == told.shape
    assert torch.allclose(clip.condition, told, atol=1e-5)


def test_results_are_kept(
    songs: Path, base_handler: AceStepHandler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = prepared(songs, base_handler, cache)
    encoded: list[Any] = []
    encode = data._encode
    monkeypatch.setattr(data, "_encode", lambda *inputs: encoded.append(1) or encode(*inputs))
    again = prepared(songs, base_handler, cache)
    assert not encoded
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, again, strict=True))
    # A damaged file, other words, other audio and another checkpoint are each seen.
    damaged = sorted(cache.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    prepared(songs, base_handler, cache)
    assert len(encoded) == 1
    (songs / "a.txt").write_text("another hum")
    prepared(songs, base_handler, cache)
    assert len(encoded) == 2
    (songs / "b.wav").write_bytes((songs / "c.wav").read_bytes())
    prepared(songs, base_handler, cache)
    assert len(encoded) == 3
    prepared(songs, base_handler, cache, identity="another")
    assert len(encoded) == 6


def test_a_song_that_is_too_short(
    songs: Path, base_handler: AceStepHandler, tmp_path: Path
) -> None:
    data.audio_files.write(songs / "a.wav", torch.full((2, 4800), 0.1))
    with pytest.raises(RequestError, match=r"a\.wav: 0\.10 s long; expected at least 1"):
        prepared(songs, base_handler, tmp_path / "cache")


@given(
    frames=st.integers(1, 60),
    seconds=st.floats(0.01, 5.0),
    seed=st.integers(0, 1000),
)
def test_crops_are_stretches_of_the_clip(frames: int, seconds: float, seed: int) -> None:
    latents = torch.arange(frames, dtype=torch.float32)[None, :, None].expand(-1, -1, 2)
    clip = Clip(latents, torch.zeros(1, 3, 8), torch.full((1, 1, 2), 7.0), 25.0)
    batch = clip.batch(seconds, torch.Generator().manual_seed(seed))
    taken = batch["latents"][0, :, 0]
    assert 1 <= len(taken) <= max(1, round(seconds * 25))
    assert len(taken) == min(frames, max(1, round(seconds * 25)))
    assert torch.equal(taken, torch.arange(int(taken[0]), int(taken[0]) + len(taken)).float())
    context = batch["context_latents"]
    assert context.shape == (1, len(taken), 4)
    assert context[..., :2].eq(7).all()
    assert context[..., 2:].eq(1).all()
