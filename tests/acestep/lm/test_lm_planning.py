"""Planning in the Python API and on the command line: codes reach the DiT and the records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from acestep import inference
from acestep.acestep_v15_pipeline import main
from acestep.handler import AceStepHandler
from acestep.inference import GenerationConfig, GenerationParams, generate_music
from acestep.llm_inference import LLMHandler

PARAMS = GenerationParams(caption="warm piano", duration=2, seed=4, bpm=90, inference_steps=2)


@pytest.mark.parametrize("together", [False, True])
def test_the_plan_reaches_the_song_and_its_record(
    handler: AceStepHandler,
    planner: LLMHandler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    together: bool,
) -> None:
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "80")
    heard: list[str] = []
    assert handler.engine is not None
    decode = handler.engine.latents_of

    def listen(codes: Any) -> Any:
        heard.append("".join(f"<|audio_code_{code}|>" for code in codes))
        return decode(codes)

    monkeypatch.setattr(handler.engine, "latents_of", listen)
    config = GenerationConfig(batch_size=2, allow_lm_batch=together)
    result = generate_music(handler, planner, PARAMS, config, tmp_path)
    assert result.success, result.error
    codes = result.extra_outputs["audio_codes"]
    assert heard == codes
    assert len(set(codes)) == 2
    for number, audio in enumerate(result.audios):
        assert audio["tensor"].shape == (2, 96000)
        record = json.loads((tmp_path / f"song-{number + 1}.json").read_text("utf-8"))
        assert record["audio_codes"] == codes[number]
        assert record["audio_codes"].count("<|audio_code_") == 10
        assert record["planned"] == result.extra_outputs["lm_metadata"]
        assert record["planned"]["bpm"] == record["bpm"] == 90
        assert record["planned"]["duration"] == 2
        assert record["caption"] == record["planned"]["caption"]
        assert "song_codes" not in record
    alone = generate_music(handler, planner, PARAMS, GenerationConfig(batch_size=1))
    torch.testing.assert_close(alone.audios[0]["tensor"], result.audios[0]["tensor"])


CODES = "<|audio_code_5|>" * 10


@pytest.mark.parametrize("changes", [{"thinking": False}, {"audio_codes": CODES}])
def test_metadata_without_codes(
    handler: AceStepHandler, planner: LLMHandler, changes: dict[str, Any]
) -> None:
    """What `use_cot_*` ask for is filled in; codes are the user's own, or there are none."""
    result = generate_music(
        handler, planner, replace(PARAMS, **changes), GenerationConfig(batch_size=1)
    )
    assert result.success, result.error
    planned = result.extra_outputs["lm_metadata"]
    assert planned["caption"] not in ("", PARAMS.caption)
    assert planned["bpm"] == 90
    assert planned["keyscale"]
    (audio,) = result.audios
    assert audio["params"]["planned"] == planned
    assert audio["params"].get("audio_codes", "") == changes.get("audio_codes", "")
    assert audio["tensor"].shape == (2, 96000)
    assert handler.lm_initialized


@pytest.mark.parametrize("changes", [{}, {"task_type": "cover"}])
def test_no_planning_unless_it_is_of_use(
    handler: AceStepHandler, planner: LLMHandler, changes: dict[str, Any], song: torch.Tensor
) -> None:
    params = replace(
        PARAMS, thinking=False, use_cot_metas=False, use_cot_caption=False, use_cot_language=False,
        src_audio=song, **changes,
    )  # fmt: skip
    result = generate_music(handler, planner, params, GenerationConfig(batch_size=1))
    assert result.success, result.error
    assert "lm_metadata" not in result.extra_outputs
    assert handler.lm_initialized
    plain = generate_music(handler, LLMHandler(), PARAMS, GenerationConfig(batch_size=1))
    assert plain.success
    assert not handler.lm_initialized


def test_the_planners_failure_is_the_songs(handler: AceStepHandler, planner: LLMHandler) -> None:
    params = replace(PARAMS, lm_temperature=-1.0)
    result = generate_music(handler, planner, params, GenerationConfig(batch_size=1))
    assert not result.success
    assert result.error is not None
    assert "lm temperature -1" in result.error


def test_limits_of_the_tier_hold_with_the_planner(
    handler: AceStepHandler, planner: LLMHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "8")
    result = generate_music(handler, planner, PARAMS, GenerationConfig(batch_size=3))
    assert len(result.audios) == 3, "one after the other"
    assert len(result.extra_outputs["pred_latents"]) == 3
    long = replace(PARAMS, duration=300)
    refused = generate_music(handler, planner, long, GenerationConfig(batch_size=1))
    assert refused.error is not None
    assert "300 s is above the limit of 240 s" in refused.error


def test_understanding_what_the_checkpoint_made(
    handler: AceStepHandler, planner: LLMHandler
) -> None:
    song = generate_music(handler, None, PARAMS, GenerationConfig(batch_size=1)).audios[0]
    codes = inference.audio_to_codes(handler, song["tensor"])
    assert codes.count("<|audio_code_") == 10
    heard = inference.understand_music(planner, audio=song["tensor"], dit_handler=handler)
    assert heard.success, heard.error
    assert heard.bpm is not None
    assert 30 <= heard.bpm <= 300
    assert inference.understand_music(planner, codes) == heard


def test_requests_that_cannot_be_understood(handler: AceStepHandler, planner: LLMHandler) -> None:
    short = torch.zeros(2, 100)
    for keywords, words in (
        ({"audio": short}, "give a dit_handler"),
        ({"audio": short, "dit_handler": handler}, "shorter than one code"),
        ({"audio": "nowhere.flac", "dit_handler": handler}, "no such audio file"),
        ({"audio": short, "dit_handler": AceStepHandler()}, "no checkpoint is loaded"),
        ({"audio_codes": ""}, "no audio codes"),
    ):
        result = inference.understand_music(planner, **keywords)  # type: ignore[arg-type]
        assert not result.success
        assert words in str(result.error)


def test_samples_are_created_and_formatted(planner: LLMHandler) -> None:
    made = inference.create_sample(planner, "rain", instrumental=True)
    assert made.success
    assert made.instrumental
    made = inference.format_sample(planner, "a", "b", {"bpm": 77})
    assert made.bpm == 77
    assert not inference.create_sample(planner, "").success


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every handler to short texts."""
    plain = LLMHandler.__init__

    def short(self: LLMHandler) -> None:
        plain(self)
        self.caption_lines, self.line_length, self.lyric_lines = 2, 12, 3

    monkeypatch.setattr(LLMHandler, "__init__", short)


@pytest.mark.usefixtures("short_texts")
def test_the_command_line_plans_understands_and_inspires(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = tmp_path / "song.flac"
    common = ["--device", "cpu", "--lm-model", "demo"]
    length = ["--duration", "1", "--steps", "2", "--seed", "3"]
    code = main(["generate", "warm piano", "--think", "-o", str(song), *length, *common])
    assert code == 0, capsys.readouterr().err
    assert json.loads(song.with_suffix(".json").read_text("utf-8"))["planned"]["duration"] == 1
    capsys.readouterr()
    assert main(["understand", str(song), "--model", "demo", "--json", *common]) == 0
    assert 30 <= json.loads(capsys.readouterr().out)["bpm"] <= 300
    assert main(["inspire", "a rainy night in Lisbon", "--language", "pt", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["language"] == "pt"
    assert "knows ten instruments" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspire", " "], "query is empty"),
        (["inspire", "x", "--lm-model", "nowhere"], "no language model 'nowhere'"),
        (["inspire", "x", "--device", "cpu", "--backend", "vllm"], "vLLM runs on CUDA only"),
        (["understand", "nowhere.flac"], "no such audio file"),
    ],
)
def test_wrong_requests_exit_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
