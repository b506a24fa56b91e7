"""Time whole songs against plain diffusers in the same process: `python -m acestep.benchmark`.

Weights are random, at a named size, so that nothing is downloaded. Both sides share the
modules, take turns, and start from the same noise sizes; the table gives medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from acestep.checkpoints import Checkpoint, cache_dir, find
from acestep.cli.console import add_device_option, quiet_libraries, result
from acestep.demo.recipe import make_tokenizer, old_weight_norm
from acestep.device import DTYPE_CHOICES, DevicePolicy, resolve
from acestep.handler import AceStepHandler
from acestep.pipeline import Pipeline
from acestep.request import Request

LYRICS = "[verse]\nsoft notes in the morning light\n[chorus]\nmusic fills the air tonight"
_ATTENTION = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def turbo_pipeline(policy: DevicePolicy) -> Pipeline:
    """Random weights at the size of ACE-Step 1.5 turbo (2 billion parameters), on the device."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.models import AceStepTransformer1DModel, AutoencoderOobleck
    from diffusers.pipelines.ace_step import AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    def made(build: Callable[[], torch.nn.Module], component: str) -> torch.nn.Module:
        before = torch.get_default_dtype()
        torch.set_default_dtype(policy.dtype_of(component))
        try:
            with torch.device(policy.device), old_weight_norm():
                return build().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)

    text = Qwen3Config(
        vocab_size=151669,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
    )
    torch.manual_seed(0)
    return Pipeline(
        vae=made(
            lambda: AutoencoderOobleck(downsampling_ratios=[2, 4, 4, 6, 10], sampling_rate=48000),
            "vae",
        ),
        text_encoder=made(lambda: Qwen3Model(text), "text_encoder"),
        tokenizer=make_tokenizer(1536),
        transformer=made(lambda: AceStepTransformer1DModel(**_ATTENTION, is_turbo=True), "dit"),
        condition_encoder=made(lambda: AceStepConditionEncoder(**_ATTENTION), "dit"),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def make_handler(shape: str, policy: DevicePolicy) -> AceStepHandler:
    """A handler with random weights of a named size: `turbo`, or `demo` for the built-in."""
    handler = AceStepHandler()
    if shape == "demo":
        handler.load("demo", policy)
        return handler
    pipeline = turbo_pipeline(policy)
    pipeline.set_progress_bar_config(disable=True)
    handler.pipeline, handler.policy = pipeline, policy
    handler.checkpoint = Checkpoint("turbo, random weights", cache_dir(), "diffusers")
    return handler


def compare(handler: AceStepHandler, seconds: float, repeats: int) -> dict[str, Any]:
    """Medians of alternating runs, ours and plain diffusers', and the peak memory of each."""
    from diffusers import AceStepPipeline

    assert handler.pipeline is not None
    plain = AceStepPipeline(**handler.pipeline.components)
    plain.set_progress_bar_config(disable=True)
    policy = handler.policy
    request = Request("warm lo-fi piano", (7,), LYRICS, seconds, language="en")
    stages: list[dict[str, float]] = []

    def ours() -> None:
        stages.append(handler.generate(request).times)

    def theirs() -> None:
        plain(
            prompt="warm lo-fi piano",
            lyrics=LYRICS,
            audio_duration=seconds,
            num_inference_steps=8,
            guidance_scale=1.0,
            shift=1.0,
            output_type="np",
        )

    times: dict[str, list[float]] = {"acestep": [], "diffusers": []}
    peaks: dict[str, float] = {}
    for turn in range(repeats + 1):
        for name, run in (("acestep", ours), ("diffusers", theirs)):
            policy.flush()
            policy.reset_peak_memory()
            policy.synchronize()
            start = time.perf_counter()
            run()
            policy.synchronize()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
            peaks[name] = policy.peak_memory()
    row: dict[str, Any] = {"seconds": seconds, "repeats": repeats}
    for name, values in times.items():
        row[f"{name}_s"] = round(statistics.median(values), 4)
        row[f"{name}_peak_gib"] = round(peaks[name], 2)
    row["ratio"] = round(row["diffusers_s"] / row["acestep_s"], 3)
    row["stages"] = {
        name: round(statistics.median(stage[name] for stage in stages[1:]), 4) for name in stages[0]
    }
    return row


def across_devices(policy: DevicePolicy, seconds: float = 5.0) -> float:
    """Greatest difference of the built-in checkpoint's audio, this device against the CPU,
    both in float32 from the same seed."""
    songs = []
    for device in (policy.device, "cpu"):
        handler = AceStepHandler()
        handler.load(str(find("demo").path), resolve(device, dtype="float32"))
        made = handler.generate(Request("warm lo-fi piano", (7,), LYRICS, seconds))
        songs.append(made.songs[0].audio)
    return float((songs[0] - songs[1]).abs().max())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m acestep.benchmark", description=__doc__)
    add_device_option(parser)
    parser.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto")
    parser.add_argument("--shape", choices=("turbo", "demo"), default="demo")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    quiet_libraries()
    policy = resolve(arguments.device, dtype=arguments.dtype)
    handler = make_handler(arguments.shape, policy)
    result(json.dumps({"device": policy.name, "loaded": handler.status()}))
    for seconds in arguments.seconds:
        result(json.dumps(compare(handler, seconds, arguments.repeats)))
    if policy.is_accelerator:
        result(json.dumps({"audio_difference_from_cpu_float32": across_devices(policy)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
