"""The language model: the device it picks, the backend it takes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from conformance.entrypoints import covers
from conformance.suite.support import (
    SAMPLE_RATE,
    Api,
    absent_device,
    backends,
    generate,
    song,
    tone,
)
from conformance.targets import Target, find
from conformance.tree import Absent

INITIALIZE = "llm_inference:LLMHandler.initialize"


def started(api: Api, folder: Path, **options: Any) -> tuple[Any, str, bool]:
    """A handler that was told to load the built-in language model; with its answer."""
    made = api.get("llm_inference:LLMHandler")()
    message, ok = made.initialize(checkpoint_dir=str(folder), lm_model_path="demo", **options)
    return made, message, ok


@covers("S4", "A2", INITIALIZE)
def test_auto_picks_this_device(api: Api, target: Target, tmp_path: Path) -> None:
    best = next(name for name in ("cuda", "mps", "cpu") if find()[name].present)
    if target.name != best and not target.simulated:
        raise Absent(f"auto means {best} on this machine, which is judged in its own column")
    made, message, ok = started(api, tmp_path, backend="pt", device="auto")
    assert ok, message
    assert torch.device(made.device).type == target.device, api.option("auto")


@covers("S4", INITIALIZE)
def test_an_explicit_device_is_used(api: Api, target: Target, tmp_path: Path) -> None:
    made, message, ok = started(api, tmp_path, backend="pt", device=target.device)
    assert ok, message
    assert torch.device(made.device).type == target.device
    assert made.llm_backend == "pt"


@covers("S4", INITIALIZE)
@pytest.mark.names_cuda("the case itself asks for a device that is absent")
def test_an_absent_device_is_refused(api: Api, target: Target, tmp_path: Path) -> None:
    absent = absent_device(target)
    made, message, ok = started(api, tmp_path, backend="pt", device=absent)
    assert not ok, f"asked for {absent}, which is absent, and got {made.device}"
    assert absent in message
    assert len(message.splitlines()) == 1


@covers("S5", INITIALIZE)
def test_backend_by_device(api: Api, target: Target, tmp_path: Path) -> None:
    """Without a wish the device decides; a backend that it cannot run is refused."""
    made, message, ok = started(api, tmp_path, device=target.device)
    assert ok, message
    assert made.llm_backend in backends(target)
    if target.device != "cuda":
        made, message, ok = started(api, tmp_path, device=target.device, backend="vllm")
        assert not ok
        assert "vllm" in message.lower()


@covers(
    "A1",
    "A3",
    "llm_inference:LLMHandler*",
    "lm.decoding:*",
    "lm.describing:*",
    "lm.grammar:*",
    "lm.loading:*",
    "lm.models:*",
    "lm.following:*",
    "lm.mlx:*",
    "lm.mlx_decoding:*",
    "lm.mlx_weights:load_model",
    "lm.mlx_weights:stored_bits",
    "lm.options:*",
    "lm.planner:*",
    "lm.prompts:*",
    "lm.pt:*",
    "lm.sampling:*",
    "lm.tokens:*",
    "lm.writer:*",
    "lm.cot:*",
    "inference:understand_music",
    "inference:create_sample",
    "inference:format_sample",
    "inference:audio_to_codes",
    "handler:AceStepHandler.codes_of",
    "engines.torch.engine:TorchEngine.codes_of",
)
def test_every_use_of_the_model(api: Api, target: Target, handler: Any, tmp_path: Path) -> None:
    """Plan, understand, invent and rewrite, held to the grammar and free, on this device."""
    understand = api.get("inference:understand_music")
    made, message, ok = started(api, tmp_path, device=target.device)
    assert ok, message
    assert made.llm_initialized
    assert torch.device(made.device).type == target.device
    assert made.llm_backend in backends(target)
    assert made.dtype.is_floating_point
    assert made.gpu_config.tier
    # A device is judged by a few tokens as well as by hundreds.
    made.caption_lines, made.line_length, made.lyric_lines = 2, 12, 3
    # A folder that only has the name of one.
    (tmp_path / "acestep-5Hz-lm-none").mkdir()
    assert "demo" in made.get_available_5hz_lm_models()
    for by_grammar in (True, False):
        planned = made.generate_with_stop_condition(
            "warm piano",
            "la la",
            "llm_dit",
            cfg_scale=2.0,
            user_metadata={"duration": 10, "bpm": 90},
            target_duration=1,
            use_constrained_decoding=by_grammar,
            seeds=[1],
        )
        assert planned["success"], planned["error"]
    assert planned["audio_codes"]
    assert made.parse_lm_output("<think>\nbpm: 90\n</think>")[0]["bpm"] == 90
    for answer in (
        understand(made, audio=tone(1.0), dit_handler=handler),
        api.get("inference:create_sample")(made, "rain in Lisbon"),
        api.get("inference:format_sample")(made, "piano", "la la"),
    ):
        assert answer.success, answer.error
    made.cancel()
    # The same weights under another engine, as benchmarks hold a model that is no file.
    held = made.backend
    engine = type(held).of(held.model, held.tokenizer, held.tokens, made.policy)
    other = api.get("llm_inference:LLMHandler")()
    other.adopt(engine, made.policy, "adopted")
    assert other.llm_initialized
    assert torch.device(other.device).type == target.device
    other.unload()
    made.unload()
    assert not made.llm_initialized


@covers("A1", "A3", INITIALIZE, "llm_inference:LLMHandler.generate_with_stop_condition")
def test_the_text_is_that_of_the_host(api: Api, target: Target, tmp_path: Path) -> None:
    """In float32 greedy and seeded text are the CPU's, token for token; offloaded ones too."""
    api.get("llm_inference:LLMHandler.generate_with_stop_condition")
    engine = backends(target)[0]
    wishes = [("cpu", "pt", False), (target.device, engine, False)]
    if target.device == "cuda" and engine == "pt":
        wishes.append((target.device, engine, True))
    written = []
    for device, backend, offload in wishes:
        made, message, ok = started(
            api, tmp_path, backend=backend, device=device, dtype="float32", offload_to_cpu=offload
        )
        assert ok, message
        assert made.llm_backend == backend
        texts = []
        for temperature in (0.0, 0.85):
            planned = made.generate_with_stop_condition(
                "warm piano",
                "la la",
                "llm_dit",
                temperature=temperature,
                cfg_scale=2.0,
                target_duration=2,
                batch_size=2,
                seeds=[3, 4],
            )
            assert planned["success"], planned["error"]
            texts.append((planned["metadata"], planned["audio_codes"]))
        written.append(texts)
        made.unload()
    assert all(texts == written[0] for texts in written), "other text than on the host"


@covers("A1", "A3", "inference:generate_music", "song.planning:plan", "song.planning:plans")
@covers("song.planning:metadata_of", "song.params:make_request", "song.request:Planning.asked")
def test_a_song_with_a_plan(api: Api, target: Target, handler: Any, tmp_path: Path) -> None:
    """The plan's codes reach the song, with the language model on the same device."""
    api.get("song.planning:plan")
    backend = backends(target)[0]
    made, message, ok = started(api, tmp_path, backend=backend, device=target.device)
    assert ok, message
    song(generate(api, handler, made, duration=1.0, inference_steps=1))


@covers(
    "A1",
    "cli.inspire:*",
    "cli.understand:*",
    "cli.planner:add_planner_options",
    "cli.planner:add_sample_options",
    "cli.planner:check_sampling",
    "cli.planner:load",
    "cli.planner:print_sample",
)
def test_planner_commands(
    api: Api, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.get("cli.inspire:run")
    main = api.get("acestep_v15_pipeline:main")
    common = ["--lm-model", "demo", "--device", target.device, "--json", "--quiet"]
    assert main(["inspire", "a rainy night", *common]) == 0
    assert json.loads(capsys.readouterr().out)["caption"]
    source = tmp_path / "song.wav"
    soundfile.write(source, tone(1.0).T.numpy(), SAMPLE_RATE)
    assert main(["understand", str(source), "--model", "demo", *common]) == 0
    assert json.loads(capsys.readouterr().out)["bpm"]
