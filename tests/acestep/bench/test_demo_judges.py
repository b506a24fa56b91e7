"""Tests of what judges the built-in checkpoint, on synthesis and on the weights that ship.

What hears the music needs `acestep[judge]` and half a minute: `pytest -m soak` of this file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from acestep.bench import adapt, evaluate
from acestep.checkpoint.adapters import making
from acestep.demo.captions import Prompt
from acestep.demo.music import INSTRUMENTS, NEWCOMER, Song, compose, held_out
from acestep.demo.parts import WEIGHTS
from acestep.demo.synth import SAMPLE_RATE, Voices
from acestep.device import resolve
from acestep.handler import AceStepHandler
from acestep.training.configs import LORA_TARGETS
from acestep.training.data import find_examples

JUDGED = {
    "conditioning.safetensors": "685688143c8e9436",
    "planner.safetensors": "2b7a6d546c2e989d",
    "planner_tokenizer.json": "823c74af50065f23",
    "tokenizer.json": "b212070b9024c10c",
    "transformer.safetensors": "b4c5b551a291ae08",
    "vae.safetensors": "3c47b60268728708",
}
"""The weights that the soak of this file last passed with: the start of each file's SHA-256."""


@pytest.fixture(scope="module")
def organ() -> tuple[Song, torch.Tensor]:
    song = compose(np.random.default_rng(3), evaluate.SECONDS, instrument="organ")
    return song, Voices().render([song])


def test_the_weights_are_small_enough() -> None:
    sizes = {file.name: file.stat().st_size for file in WEIGHTS.iterdir()}
    planner = sizes.pop("planner.safetensors") + sizes.pop("planner_tokenizer.json")
    assert planner <= 8e6
    assert sum(sizes.values()) <= 16e6


def test_the_weights_are_those_that_were_judged() -> None:
    """New weights are heard before they ship: run this file's soak, then note them here."""
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in WEIGHTS.iterdir()}
    assert {name: digest[:16] for name, digest in digests.items()} == JUDGED


def test_a_missing_library_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "find_spec", lambda module: None)
    with pytest.raises(SystemExit) as ended:
        evaluate.main([])
    assert ended.value.code == 2
    assert "pip install 'acestep[judge]'" in capsys.readouterr().err


@pytest.mark.soak
def test_hiss_that_nobody_hears_is_no_timbre(organ: tuple[Song, torch.Tensor]) -> None:
    _, audio = organ
    random = torch.Generator().manual_seed(0)
    hiss = 3e-5 * torch.randn(audio.shape, generator=random)
    heard = evaluate.timbre(evaluate.mono_of(audio[0]))
    hissing = evaluate.timbre(evaluate.mono_of((audio + hiss)[0]))
    louder = evaluate.timbre(evaluate.mono_of((audio + 3000 * hiss)[0]))
    assert np.abs(heard - hissing).max() < 1.0, "dB"
    assert np.abs(heard - louder).max() > 10.0


@pytest.mark.soak
def test_the_autoencoder_keeps_what_is_heard(
    trained_handler: AceStepHandler, organ: tuple[Song, torch.Tensor]
) -> None:
    """Key, tempo and most of the waveform; an untrained one fails all of it."""
    song, audio = organ
    rebuilt = evaluate.reconstructed(trained_handler, audio)
    measured = evaluate.distances(rebuilt, audio)
    assert measured["si_sdr"] > 6
    assert measured["stft"] < 0.6
    mono = evaluate.mono_of(rebuilt[0])
    assert evaluate.key_of(mono) == (song.key, song.mode)
    assert evaluate.tempo_fits(mono, song.bpm)


@pytest.mark.soak
@pytest.mark.parametrize("drums", ["with drums", "without drums"])
def test_songs_are_stereo_and_begin_without_a_click(
    trained_handler: AceStepHandler, drums: str
) -> None:
    prompt = Prompt(f"happy piano, {drums}", 107, "C major", "4")
    song = evaluate.generated(trained_handler, [prompt])
    assert -14 < float(evaluate.side_of(song)) < -4
    start, steps = song[..., : SAMPLE_RATE // 1000], song.diff().abs()
    assert float(start.abs().max()) < 0.1 * float(song.abs().max())
    # From the silence before the song, and then from sample to sample.
    first = max(float(song[..., 0].abs().max()), float(start.diff().abs().max()))
    assert first < 0.5 * float(torch.quantile(steps[..., ::8].flatten(), 0.99))


def test_one_channel_twice_has_no_side() -> None:
    wave = torch.randn(2, 1, 100, generator=torch.Generator().manual_seed(0))
    made = evaluate.side_of(torch.cat([wave, wave], dim=1))
    assert float(made.max()) == pytest.approx(-120)
    apart = evaluate.side_of(torch.cat([wave, torch.zeros_like(wave)], dim=1))
    assert torch.allclose(apart, torch.zeros(2), atol=1e-5)


def test_the_newcomer_is_no_training_material() -> None:
    random = np.random.default_rng(0)
    assert NEWCOMER not in INSTRUMENTS
    assert NEWCOMER not in {compose(random, 2.0).instrument for _ in range(50)}
    assert not held_out(NEWCOMER, 0, "major")


def test_clips_of_the_newcomer_are_training_data(tmp_path: Path) -> None:
    adapt.main(["clips", str(tmp_path), "--count", "2"])
    examples = find_examples(tmp_path)
    assert [example.path.name for example in examples] == ["00.flac", "01.flac"]
    for example in examples:
        assert NEWCOMER in example.caption
        assert example.bpm
        assert example.key
        assert example.timesignature in ("2", "3", "4", "6")


@pytest.mark.soak
def test_an_adapter_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = AceStepHandler()
    handler.load("demo", resolve("cpu"))
    assert handler.pipeline is not None
    transformer = handler.pipeline.transformer
    making.add_adapter(transformer, 2, 2.0, LORA_TARGETS, seed=1)
    making.save_adapter(transformer, tmp_path / "new.lora")
    adapt.main(["judge", "demo", str(tmp_path / "new.lora"), "--songs", "1", "--examples", "2",
                "--device", "cpu"])  # fmt: skip
    shares = json.loads(capsys.readouterr().out)
    # This one changes nothing, so that both songs are the same.
    assert shares["with"] == shares["without"]
    assert shares["with"] in (0.0, 1.0)
