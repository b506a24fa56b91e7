"""All six tasks of an undistilled checkpoint, and a song planned by the language model, on the simulated MPS device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from acestep.device import resolve
from acestep.handler import AceStepHandler
from acestep.inference import generate_music
from acestep.llm_inference import LLMHandler
from acestep.params import GenerationConfig, GenerationParams
from acestep.request import Request
from conformance import simulate

TASKS: dict[str, dict[str, Any]] = {
    "text2music": {"duration": 0.6},
    "cover": {"cover_strength": 0.5},
    "repaint": {"repaint": (0.2, 0.4)},
    "extract": {"track_name": "vocals"},
    "lego": {"track_name": "drums"},
    "complete": {"track_classes": ("bass", "drums")},
}


def align(handler: AceStepHandler) -> None:
    """Moves weights to where torch's allocator puts them.

    Weights on the CPU are mapped from their file and lie at any address; the CPU's matrix products
    round differently by address, with or without a simulation.
    """
    assert handler.pipeline is not None
    for module in handler.pipeline.components.values():
        for parameter in module.parameters() if isinstance(module, torch.nn.Module) else ():
            parameter.data = parameter.data.clone()


def songs(folder: Path, device: str, source: torch.Tensor) -> dict[str, torch.Tensor]:
    """Audio of each task, `[2, samples]` on the host."""
    handler = AceStepHandler()
    # The host convolves as the limited device does, so that every bit can be compared.
    policy = resolve(device, dtype="float32")
    handler.load(str(folder), dataclasses.replace(policy, max_conv_output=65536))
    align(handler)
    made = {}
    for task, extra in TASKS.items():
        src: dict[str, Any] = {} if task == "text2music" else {"src_audio": source}
        request = Request("warm piano", (7,), "[verse]\nla", task=task, steps=1, **src, **extra)
        made[task] = handler.generate(request).songs[0].audio
    return made


def test_every_task_is_bit_equal(base_folder: Path, song: torch.Tensor) -> None:
    source = song[:, :28800]
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


def test_a_planned_song_is_equal() -> None:
    """The codes are the same; audio within rounding, for weights lie at other addresses."""
    audio, codes = planned("cpu")
    assert codes[0].count("audio_code") == 3
    with simulate.mps(macos="15.5", memory_gb=64, fallback=False) as simulation:
        actual, actual_codes = planned("mps")
    assert not simulation.recorder.fallbacks
    assert actual_codes == codes
    torch.testing.assert_close(actual, audio, rtol=0, atol=1e-5)
