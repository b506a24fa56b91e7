"""Tests of the built-in checkpoint's material: notes, sound, words, and latents beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.bench.evaluate import side_of
from acestep.demo.captions import Prompt, corpus, describe
from acestep.demo.material import Material, songs
from acestep.demo.music import (
    INSTRUMENTS,
    METRES,
    MIDDLE,
    MOODS,
    PATCHES,
    TEMPI,
    compose,
    held_out,
)
from acestep.demo.recipe import make_tokenizer
from acestep.demo.synth import SAMPLE_RATE, Voices, voice


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), seconds=st.floats(0.5, 30.0), unseen=st.booleans())
def test_every_piece_is_playable(seed: int, seconds: float, unseen: bool) -> None:
    song = compose(np.random.default_rng(seed), seconds, unseen=unseen)
    assert held_out(song.instrument, song.key, song.mode) == unseen
    assert (song.bpm in TEMPI, song.metre in METRES, song.mood in MOODS) == (True, True, True)
    patch, pitch, start, length, loudness, _ = song.notes.T
    assert set(patch.astype(int)) <= set(range(len(PATCHES)))
    assert ((pitch >= 30) & (pitch <= 100)).all()
    assert ((start >= 0) & (start < seconds) & (length > 0)).all()
    assert ((loudness > 0) & (loudness <= 1)).all()
    # On the frames of the VAE, 25 a second.
    assert np.allclose(start * 25, np.round(start * 25))
    assert (PATCHES.index("snare") in patch or PATCHES.index("kick") in patch) == song.drums
    again = compose(np.random.default_rng(seed), seconds, unseen=unseen)
    assert np.array_equal(song.notes, again.notes)


def test_the_tonic_is_in_the_harmony() -> None:
    """The bass opens every piece with the tonic, and comes back to it."""
    random = np.random.default_rng(0)
    for _ in range(30):
        song = compose(random, 20.0)
        bass = song.notes[song.notes[:, 0] == PATCHES.index("bass"), 1].astype(int) % 12
        assert bass[0] == song.key
        assert (bass == song.key).mean() > 0.25


def test_songs_are_the_sum_of_their_notes() -> None:
    """Rendered together or apart, a note sounds where and as loud as it is written."""
    random = np.random.default_rng(4)
    pieces = [compose(random, 1.0) for _ in range(3)]
    together = Voices().render(pieces)
    assert together.shape == (3, 2, SAMPLE_RATE)
    assert float(together.abs().max()) <= 0.9 + 1e-6
    for number, piece in enumerate(pieces):
        alone = Voices().render([piece])[0]
        assert torch.allclose(together[number], alone, atol=1e-5)
        first = round(piece.notes[:, 2].min() * SAMPLE_RATE)
        assert alone[:, :first].abs().max() == 0 if first else True
        assert float(alone.abs().max()) > 0.05


def test_pieces_are_wide_and_rise_from_silence() -> None:
    """Melody and chords stand apart, bass and drums between; no drum begins with a click."""
    random = np.random.default_rng(6)
    pieces = [compose(random, 4.0) for _ in range(6)]
    audio = Voices().render(pieces)
    assert ((side_of(audio) > -14) & (side_of(audio) < -4)).all()
    assert (audio[:, :, 0] == 0).all()
    assert float(audio[..., : SAMPLE_RATE // 1000].abs().max()) < 0.05
    # What one channel hears does not depend on where things stand.
    left, right = audio.unbind(1)
    notes = pieces[0].notes.copy()
    notes[:, 5] = MIDDLE
    narrow = Voices().render([replace(pieces[0], notes=notes)])[0]
    assert torch.equal(narrow[0], narrow[1])
    middle = (left + right)[0] / 2
    assert float(torch.corrcoef(torch.stack([middle, narrow[0]]))[0, 1]) > 0.9999


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_voices_have_their_pitch(name: str) -> None:
    """The strongest partial of an A at 440 Hz is one of its harmonics or its octave."""
    wave = voice(name, [69])[0, : SAMPLE_RATE // 2]
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    ratio = float(spectrum.argmax()) * 2 / 440
    assert abs(ratio - round(ratio)) < 0.02
    assert round(ratio) in (1, 2, 3)
    assert torch.isfinite(wave).all()


def test_prompts_are_what_the_pipeline_builds() -> None:
    from diffusers import AceStepPipeline

    prompt = Prompt("calm piano", 100, "C major", "4")
    build = AceStepPipeline._format_prompt
    fake = type(
        "P", (), {"_build_metadata_string": staticmethod(AceStepPipeline._build_metadata_string)}
    )()
    wanted, _ = build(fake, "calm piano", "", "unknown", 10.0, None, 100, "C major", "4")
    assert prompt.text(10.0) == wanted
    assert "- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A" in Prompt("x").text(5)


def test_descriptions_say_what_is_there() -> None:
    random = np.random.default_rng(2)
    for _ in range(200):
        song = compose(random, 1.0)
        prompt = describe(song, random, complete=True)
        assert (prompt.bpm, prompt.keyscale) == (song.bpm, song.keyscale)
        assert prompt.timesignature == str(song.metre)
        text = prompt.caption.lower()
        assert ("no drums" in text or "without drums" in text) <= (not song.drums)
        if "bpm" in text:
            assert f"{song.bpm} bpm" in text
    assert len({describe(song, random).caption for _ in range(50)}) > 40


def test_material_needs_no_padding() -> None:
    """A batch's prompts have one length, and each stands beside its own piece."""
    pieces = songs(12, 2.0, seed=1)
    latents = torch.arange(12.0)[:, None, None].expand(-1, 50, 3)
    tokenizer = make_tokenizer(600, corpus()[:300])
    material = Material(pieces, latents, tokenizer, (1.0, 2.0), prompts=2, seed=3)
    random = np.random.default_rng(0)
    for _ in range(20):
        drawn = material.draw(random, "text2music", 1.0, 4)
        assert drawn.latents.shape == (4, 25, 3)
        for row, ids in zip(drawn.latents, drawn.tokens, strict=True):
            song = pieces[int(row[0, 0])]
            text = tokenizer.decode(ids)
            assert f"keyscale: {song.keyscale}" in text or "keyscale: N/A" in text
            assert f"- bpm: {song.bpm}\n" in text or "bpm: N/A" in text
            assert "duration: 1 seconds" in text
