"""Batches of songs and the benchmark: the real program, on the device under test."""

from __future__ import annotations

import json
from pathlib import Path

from conformance.entrypoints import covers
from conformance.suite.support import Api
from conformance.suite.test_cli import run_main
from conformance.targets import Target


@covers(
    "A1",
    "A3",
    "cli.batch:add_parser",
    "cli.batch:run",
    "cli.batch:setting_of",
    "batch.jobs:*",
    "batch.pools:InlinePool*",
    "batch.pools:inline",
    "batch.run:*",
    "batch.worker:Worker",
    "batch.worker:Worker.compute",
    "batch.worker:Worker.encode",
    "batch.worker:unplanned",
    "engines.torch.attention:SdpaAttention*",
    "engines.torch.denoiser:Denoiser*",
    "engines.torch.transformer:StepTransformer",
    "engines.torch.transformer:StepTransformer.rotary",
    "engines.torch.wave_decoder:WaveDecoder",
    "vae.convolution:folded",
    "engines.torch.wave_decoder:wave_decoder",
)
def test_a_batch(api: Api, target: Target, tmp_path: Path) -> None:
    """A song a line on the device asked for; what failed is listed, what is done stays."""
    api.get("cli.batch:run")
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "songs"
    good = {"caption": "piano", "duration": 0.6, "inference_steps": 1}
    prompts.write_text(f"{json.dumps(good)}\n{json.dumps(good | {'bpm': 1})}\n", "utf-8")
    options = ["batch", str(prompts), "-o", str(out), "--devices", target.device]
    # float32 takes the same kernels everywhere; CUDA has others for shorter numbers.
    options += ["--config_path", "demo", "--format", "wav", "--dtype", "float32"]
    assert run_main(api, *options) == 1, "the second line cannot be made"
    (song,) = out.glob("*.wav")
    made = song.read_bytes()
    assert run_main(api, *options) == 1
    assert song.read_bytes() == made


@covers(
    "A1",
    "A3",
    "cli.bench:add_parser",
    "cli.bench:run",
    "bench.measure:Row.*",
    "bench.measure:compare",
    "bench.measure:growth",
    "bench.measure:peak_memory",
    "bench.measure:planned",
    "bench.measure:planning",
    "bench.shapes:make_handler",
    "engines.torch.addresses:places",
    "engines.torch.prompt_encoder:*",
    "engines.recent:*",
    "engines.torch.transformer:StepTransformer.is_current",
)
def test_a_benchmark(api: Api, target: Target, tmp_path: Path) -> None:
    """Every stage of a song has a time on the device asked for."""
    api.get("cli.bench:run")
    table = tmp_path / "table.json"
    options = ["bench", "--device", target.device, "--seconds", "0.6", "--repeats", "1", "--think"]
    options += ["--against", "nothing", "--json", str(table)]
    options += ["--growth", "--growth-seconds", "0.6", "--growth-batches", "1"]
    assert run_main(api, *options) == 0
    row, _ = json.loads(table.read_text(encoding="utf-8"))["rows"]
    assert row["warm"] > 0
    assert row["stages"]["vae"] > 0
