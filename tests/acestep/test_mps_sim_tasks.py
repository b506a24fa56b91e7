"""All six tasks of an undistilled checkpoint, and a song planned by the language model, on the simulated MPS device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AceStepPipeline

from acestep.device import resolve
from acestep.handler import AceStepHandler
from acestep.inference import generate_music
from acestep.llm_inference import LLMHandler
from acestep.song.params import GenerationConfig, GenerationParams
from acestep.song.request import Request
from conformance import simulate

TASKS: dict[str, dict[str, Any]] = {
    "text2music": {"duration": 1.44},
    "cover": {"cover_strength": 0.5},
    "repaint": {"repaint": (0.4, 1.0)},
    "extract": {"track_name": "vocals"},
    "lego": {"track_name": "drums"},
    "complete": {"track_classes": ("bass", "drums")},
}


def songs(folder: Path, device: str, source: torch.Tensor) -> dict[str, torch.Tensor]:
    """Audio of each task, `[2, samples]` on the host."""
    handler = AceStepHandler()
    handler.load(str(folder), resolve(device, dtype="float32"))
    made = {}
    for task, extra in TASKS.items():
        src: dict[str, Any] = {} if task == "text2music" else {"src_audio": source}
        request = Request("warm piano", (7,), "[verse]\nla", task=task, steps=1, **src, **extra)
        made[task] = handler.generate(request).songs[0].audio
    return made


@pytest.fixture(autouse=True)
def one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both devices convolve in MPS's layout: in the other the host's kernels round otherwise."""
    monkeypatch.setenv("ACESTEP_CHANNELS_LAST", "0")


def test_every_task_is_bit_equal(base_folder: Path, song: torch.Tensor) -> None:
    """The source is longer than any convolution that MPS runs whole."""
    source = song[:, : 36 * 1920]
    expected = songs(base_folder, "cpu", source)
    with simulate.mps(macos="15.5", memory_gb=16, fallback=False) as simulation:
        actual = songs(base_folder, "mps", source)
    assert simulation.recorder.operators["aten::convolution"] > 0
    assert not simulation.recorder.fallbacks
    for task, audio in expected.items():
        assert audio.abs().max() > 0, task
        assert torch.equal(actual[task], audio), task
    assert not torch.equal(expected["extract"], expected["lego"])


def planned(device: str) -> tuple[torch.Tensor, list[str]]:
    """A song that the language model planned: audio `[2, samples]`, and its codes."""
    planner = LLMHandler()
    message, ok = planner.initialize(None, "demo", device=device, dtype="float32")
    assert ok, message
    planner.caption_lines, planner.line_length = 2, 12
    handler = AceStepHandler()
    handler.load("demo", resolve(device, dtype="float32"))
    params = GenerationParams(
        caption="warm piano", lyrics="la", duration=0.6, inference_steps=1, thinking=True
    )
    config = GenerationConfig(batch_size=1, seeds=[7], use_random_seed=False)
    made = generate_music(handler, planner, params, config)
    planner.unload()
    assert made.success, made.error
    return made.audios[0]["tensor"], made.extra_outputs["audio_codes"]


def test_a_planned_song_is_bit_equal() -> None:
    audio, codes = planned("cpu")
    assert codes[0].count("audio_code") == 3
    with simulate.mps(macos="15.5", memory_gb=64, fallback=False) as simulation:
        actual, actual_codes = planned("mps")
    assert not simulation.recorder.fallbacks
    assert actual_codes == codes
    assert torch.equal(actual, audio)


def step_cost(run: Callable[[int], object]) -> tuple[float, float]:
    """Operators and waits of the host that a step of the diffusion takes on the device."""
    counts = []
    for steps in (2, 4):
        with simulate.mps(macos="15.5", memory_gb=16, fallback=False) as simulation:
            run(steps)
        recorder = simulation.recorder
        counts.append((sum(recorder.operators.values()), sum(recorder.transfers.values())))
    (few, early), (many, late) = counts
    return (many - few) / 2, (late - early) / 2


def test_a_step_is_fewer_dispatches_than_diffusers_and_no_wait() -> None:
    handler = AceStepHandler()

    def load() -> Any:
        handler.load("demo", resolve("mps", dtype="float32"))
        return handler.pipeline

    def ours(steps: int) -> None:
        load()
        handler.generate(Request("warm piano", (7,), "la", 1.0, steps=steps))

    def theirs(steps: int) -> None:
        plain = AceStepPipeline(**load().components)
        plain.set_progress_bar_config(disable=True)
        plain(
            prompt="warm piano",
            lyrics="la",
            audio_duration=1.0,
            num_inference_steps=steps,
            guidance_scale=1.0,
            output_type="latent",
        )

    operators, waits = step_cost(ours)
    plain_operators, plain_waits = step_cost(theirs)
    assert waits == 0
    assert plain_waits > 0
    assert operators < 0.6 * plain_operators
