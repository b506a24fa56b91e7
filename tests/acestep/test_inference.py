"""Tests of the Python API."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import soundfile
import torch

from acestep import inference
from acestep.errors import RequestError
from acestep.handler import AceStepHandler
from acestep.inference import GenerationConfig, GenerationParams, generate_music, make_request
from acestep.song import audio_files, loudness

QUICK = {"caption": "warm piano", "duration": 0.6, "inference_steps": 1}


def test_the_public_fields_and_their_defaults() -> None:
    defaults = {field.name: field.default for field in fields(GenerationParams)}
    expected = {
        "duration": -1, "inference_steps": 8, "seed": -1, "guidance_scale": 7.0, "shift": 1.0,
        "infer_method": "ode", "audio_cover_strength": 1.0, "thinking": True,
        "lm_temperature": 0.85, "lm_cfg_scale": 2.0, "lm_top_k": 0, "lm_top_p": 0.9,
        "vocal_language": "unknown",
    }  # fmt: skip
    assert {name: defaults[name] for name in expected} == expected
    for name in (
        "task_type instruction reference_audio src_audio audio_codes caption lyrics instrumental "
        "bpm keyscale timesignature use_adg cfg_interval_start cfg_interval_end timesteps "
        "repainting_start repainting_end lm_negative_prompt use_cot_metas use_cot_caption "
        "use_cot_language use_constrained_decoding"
    ).split():
        assert name in defaults
    config = GenerationConfig()
    assert (config.batch_size, config.lm_batch_chunk_size, config.audio_format) == (2, 8, "flac")


def test_saves_songs_with_their_parameters(handler: AceStepHandler, tmp_path: Path) -> None:
    params = GenerationParams(**QUICK, seed=5, bpm=90, keyscale="C major")  # type: ignore[arg-type]
    result = generate_music(handler, None, params, GenerationConfig(batch_size=1), tmp_path / "out")
    assert result.success, result.error
    (audio,) = result.audios
    assert audio["path"] == str(tmp_path / "out" / "song-1.flac")
    samples, rate = soundfile.read(audio["path"])
    assert (rate, samples.shape) == (48000, (28800, 2))
    record = json.loads((tmp_path / "out" / "song-1.json").read_text())
    assert record["seed"] == 5
    assert record["bpm"] == 90
    assert record["key"] == "C major"
    assert record["device"] == "cpu"
    assert record["checkpoint"] == "demo"
    again = generate_music(handler, None, params, GenerationConfig(batch_size=1))
    assert torch.equal(again.audios[0]["tensor"], audio["tensor"])
    assert again.audios[0]["path"] is None


def test_failures_come_back_and_write_nothing(handler: AceStepHandler, tmp_path: Path) -> None:
    config = GenerationConfig(batch_size=1)
    for params, chosen, expected in (
        (GenerationParams(), config, "the prompt is empty"),
        (GenerationParams(caption="x", src_audio="none.wav"), config, "no such audio file"),
        (GenerationParams(caption="x"), GenerationConfig(audio_format="wma"), "unknown audio"),
        (GenerationParams(caption="x"), GenerationConfig(batch_size=0), "batch size 0"),
        (GenerationParams(caption="x", bpm=1), config, "bpm 1 is out of range"),
    ):
        result = generate_music(handler, None, params, chosen, tmp_path / "out")
        assert not result.success
        assert expected in (result.error or "")
        assert result.audios == []
    assert not (tmp_path / "out").exists()


def test_a_song_that_cannot_be_saved_leaves_no_parameters(
    handler: AceStepHandler, tmp_path: Path
) -> None:
    blocked = tmp_path / "out"
    blocked.touch()
    params = GenerationParams(**QUICK)  # type: ignore[arg-type]
    result = generate_music(handler, None, params, GenerationConfig(batch_size=1), tmp_path / "out")
    assert not result.success
    assert "cannot write" in (result.error or "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_songs_of_before_are_kept(handler: AceStepHandler, tmp_path: Path) -> None:
    """Two calls for one folder, and one for another kind of file: numbers go on."""
    params = GenerationParams(**QUICK)  # type: ignore[arg-type]
    paths = []
    for kind, bits in (("flac", None), ("flac", 16), ("wav", 32)):
        config = GenerationConfig(batch_size=1, audio_format=kind, audio_bit_depth=bits)
        made = generate_music(handler, None, params, config, tmp_path)
        paths.append(Path(made.audios[0]["path"]).name)
    assert paths == ["song-1.flac", "song-2.flac", "song-3.wav"]
    assert [soundfile.info(tmp_path / name).subtype for name in paths] == [
        "PCM_24", "PCM_16", "FLOAT",
    ]  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 6
    again = audio_files.read(tmp_path / "song-3.wav")
    assert torch.equal(again, made.audios[0]["tensor"]), "a float file is the song, bit for bit"


def test_a_loudness_is_kept_or_said(handler: AceStepHandler, tmp_path: Path) -> None:
    params = GenerationParams(**QUICK)  # type: ignore[arg-type]
    low = GenerationConfig(batch_size=1, audio_loudness=-30)
    made = generate_music(handler, None, params, low, tmp_path)
    assert made.audios[0]["params"]["loudness"] == {"asked": -30, "made": -30.0}
    assert loudness.measured(made.audios[0]["tensor"]) == pytest.approx(-30, abs=0.05)
    loud = generate_music(
        handler, None, params, GenerationConfig(batch_size=1, audio_loudness=-5), tmp_path
    )
    assert "LUFS, not -5: its peaks allow no more" in loud.status_message
    assert loud.audios[0]["tensor"].abs().max() <= loudness.CEILING + 1e-4
    refused = generate_music(handler, None, params, GenerationConfig(audio_loudness=0))
    assert "loudness 0 is out of range" in (refused.error or "")


def test_seeds() -> None:
    def seeds(seed: int = -1, **config: object) -> tuple[int, ...]:
        params = GenerationParams(caption="x", seed=seed)
        return make_request(params, GenerationConfig(**config)).seeds  # type: ignore[arg-type]

    assert seeds(7, batch_size=3) == (7, 8, 9)
    assert seeds(seeds=[4, 5], batch_size=2) == (4, 5)
    assert seeds(seeds=[4], batch_size=3, use_random_seed=False) == (4, 5, 6)
    first, second = seeds(seeds=[4], batch_size=2)
    assert first == 4
    assert 0 <= second < 2**32
    assert len(set(seeds(batch_size=8))) == 8
    assert seeds(seeds=[1, 2, 3], batch_size=2) == (1, 2)


def test_request_from_parameters(song_file: Path, song: torch.Tensor) -> None:
    params = GenerationParams(
        task_type="cover", caption="x", lyrics="la", instrumental=True, src_audio=song_file, reference_audio=song,
        duration=9, repainting_start=1, repainting_end=-1, timesteps=[1.0, 0.5],
        complete_track_classes=["drums"],
    )  # fmt: skip
    request = make_request(params, GenerationConfig(batch_size=1))
    assert request.lyrics == "[Instrumental]"
    assert request.duration is None, "the source decides"
    assert request.repaint == (1, None)
    assert request.timesteps == (1.0, 0.5)
    assert request.track_classes == ("drums",)
    assert request.reference_audio is song
    assert request.src_audio is not None
    assert request.src_audio.shape == song.shape
    assert make_request(GenerationParams(caption="x"), GenerationConfig()).duration is None
    with pytest.raises(RequestError):
        inference.run(AceStepHandler(), params, GenerationConfig(batch_size=1))


def test_a_repainted_file_is_the_source_bit_for_bit_elsewhere(
    handler: AceStepHandler, song: torch.Tensor, tmp_path: Path
) -> None:
    """In a float WAV, whose samples are kept as they are, from the source's file on."""
    import soundfile

    source = tmp_path / "source.wav"
    soundfile.write(source, song.repeat(1, 3).T.numpy(), 48000, subtype="FLOAT")
    params = GenerationParams(
        task_type="repaint", caption="drums", src_audio=source, repainting_start=2,
        repainting_end=4, inference_steps=2, seed=1,
    )  # fmt: skip
    config = GenerationConfig(batch_size=1, audio_format="wav", audio_bit_depth=32)
    made = generate_music(handler, None, params, config, tmp_path / "out")
    assert made.success, made.error
    before, _ = soundfile.read(source, dtype="float32")
    after, rate = soundfile.read(made.audios[0]["path"], dtype="float32")
    assert (rate, after.shape) == (48000, before.shape)
    fade = round(0.025 * 48000)
    assert (after[: 96000 - fade] == before[: 96000 - fade]).all()
    assert (after[192000 + fade :] == before[192000 + fade :]).all()
    assert not (after[100000:188000] == before[100000:188000]).all()
