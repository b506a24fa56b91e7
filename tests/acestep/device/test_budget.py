"""What a Mac holds under MLX: computed from shapes, held against the libraries' own, and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from acestep.bench import shapes
from acestep.checkpoint.finding import find
from acestep.checkpoint.sizes import held_gib
from acestep.cli import devices
from acestep.device import DevicePolicy, budget, resolve
from acestep.engines.loading import check_room
from acestep.errors import RequestError
from acestep.gpu_config import get_gpu_config
from acestep.song.limits import Room
from acestep.vae.windows import chunk_frames_of


def numbers(module: torch.nn.Module) -> tuple[int, int]:
    """Of matrices in stacks, and of all."""
    named = {f".{name}": value for name, value in module.named_parameters()}
    stacked = [v for name, v in named.items() if ".layers." in name and v.ndim == 2]
    return sum(v.numel() for v in stacked), sum(v.numel() for v in named.values())


@pytest.mark.parametrize(("name", "widths"), [("turbo", shapes._TURBO), ("xl-turbo", shapes._XL)])
def test_weights_are_those_of_the_libraries_modules(name: str, widths: dict[str, int]) -> None:
    with torch.device("meta"):
        parts = shapes.large_pipeline(
            dataclasses.replace(resolve("cpu"), device=torch.device("meta")), widths
        )
    stacked, whole = numbers(parts.transformer)
    assert stacked == budget.MUSIC[name].matrices
    vae = numbers(parts.vae)[1]
    others = [parts.condition_encoder, parts.text_encoder, parts.audio_token_detokenizer]
    everything = whole + sum(numbers(part)[1] for part in (*others, parts.audio_tokenizer))
    assert budget.music_gib(name, None) == pytest.approx(
        (2 * everything + 4 * vae) / 2**30, rel=0.01
    )
    small = stacked + sum(numbers(part)[0] for part in others)
    few = small * 1.0625 + 2 * (everything - small) + 4 * vae
    assert budget.music_gib(name, 8) == pytest.approx(few / 2**30, rel=0.01)


def test_small_macs_have_a_configuration_that_fits() -> None:
    """8 and 16 GB: whole songs, planned by the 0.6B; 4 GB has none, and large ones need no bits."""
    found = {gb: budget.best(budget.working_set(gb)) for gb in (4, 8, 16, 64)}
    assert found[4] is None
    for gb, bits in ((8, 4), (16, 8), (64, None)):
        made = found[gb]
        assert made is not None
        assert (made.bits, made.longest) == (bits, 600)
        assert (made.music, made.language) == ("turbo", "acestep-5Hz-lm-0.6B")
        assert made.weights < made.peak <= made.most <= budget.SAFE * budget.working_set(gb)
    assert budget.working_set(8) == pytest.approx(5.33, abs=0.01)
    assert budget.working_set(64) == 48


@pytest.mark.parametrize(
    ("gb", "bits", "measured"), [(16, 8, 7233), (16, 8, 7438), (8, 4, 4900), (32, None, 9455)]
)
def test_what_a_song_took_is_near_below_what_is_said(
    gb: float, bits: int | None, measured: float
) -> None:
    """MiB by MLX's counters for 600 s at turbo's size, the 0.6B beside it: on the CPU build, and on
    an H200 with an M-chip's buffers of commands; `MAC.md` has the commands."""
    said = budget.fit("turbo", "acestep-5Hz-lm-0.6B", bits, budget.working_set(gb)).most * 1024
    assert 0.99 * measured <= said <= 1.15 * measured


def test_work_grows_with_the_song_and_decoding_does_not() -> None:
    turbo = budget.MUSIC["turbo"]
    assert budget.step_gib(600, 1, turbo) > 2 * budget.step_gib(60, 1, turbo)
    assert budget.step_gib(60, 4, turbo) > 3 * budget.step_gib(60, 1, turbo)
    chunk = budget.chunk_frames(5.33, 160)
    assert 32 <= chunk < budget.chunk_frames(10.67, 160) < 160
    assert budget.chunk_frames(48, 160) == 160
    assert budget.chunk_frames(0.1, 160) == 32
    for gb in (5.33, 10.67):
        frames = budget.chunk_frames(gb, 160) + 18
        assert budget.wave_gib(frames) <= 0.2 * gb
    assert budget.song_gib(10, 1, 128, 16) < budget.song_gib(10, 1, 2048, 16)


def mlx(memory: float, quantization: str | None = None) -> DevicePolicy:
    """The policy of a Mac that does not exist, as far as memory goes."""
    here = resolve("cpu", engine="torch")
    return dataclasses.replace(
        here, engine="mlx", device=torch.device("mps"), total_memory=memory,
        quantization=quantization,
    )  # fmt: skip


def test_tiers_under_mlx_are_what_the_plan_says() -> None:
    small = get_gpu_config(policy=mlx(budget.working_set(8), "int4"))
    assert small.available_lm_models == ("acestep-5Hz-lm-0.6B",)
    assert small.max_duration(True) == small.max_duration(False) == 600
    assert (small.init_lm_default, small.offload_to_cpu_default) == (True, False)
    whole = get_gpu_config(policy=mlx(budget.working_set(8)))
    assert (whole.available_lm_models, whole.max_duration()) == ((), 0)
    large = get_gpu_config(policy=mlx(48))
    assert len(large.available_lm_models) == 3
    assert large.max_batch_size(True) == 8
    room = Room(small, True, True, 1.5, 2048, on_mlx=True)
    assert 0 < room.longest() < 600
    assert room.need(600) > room.spare >= room.need(room.longest())


def test_chunks_are_as_long_as_memory_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions = torch.nn.Sequential(torch.nn.Conv1d(64, 128, 7), torch.nn.Conv1d(128, 2, 7))
    assert chunk_frames_of(convolutions, 1920, 9, mlx(5.33)) == budget.chunk_frames(5.33, 160)
    assert chunk_frames_of(convolutions, 1920, 9, mlx(48)) == 160
    assert chunk_frames_of(convolutions, 1920, 9, resolve("cpu")) == 160


def test_weights_without_room_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, policy = find("demo"), resolve("cpu")
    stored = sum(file.stat().st_size for file in checkpoint.path.rglob("*.safetensors"))
    whole, eight, four = (held_gib(checkpoint, policy, bits) for bits in (None, 8, 4))
    half = dataclasses.replace(policy.with_dtype("bfloat16"))
    assert held_gib(checkpoint, half, None) == pytest.approx(whole / 2)
    assert whole >= 0.99 * stored / 2**30
    assert four < eight < whole
    monkeypatch.setattr(DevicePolicy, "free_memory", eight)
    check_room(checkpoint, dataclasses.replace(policy, quantization="int8"))
    with pytest.raises(
        RequestError, match=r"demo needs 0\.\d GiB and cpu has .*--quantize 8 takes"
    ):
        check_room(checkpoint, policy)
    monkeypatch.setattr(DevicePolicy, "free_memory", 0.0)
    with pytest.raises(RequestError, match="take a smaller checkpoint, or close other programs"):
        check_room(checkpoint, policy)


def test_the_plan_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from acestep.acestep_v15_pipeline import main

    assert main(["devices", "--plan", "8"]) == 0
    said = capsys.readouterr().out
    assert "a Mac of 8 GB: a working set of 5.3 GiB" in said
    assert said.splitlines()[-1].endswith("--lm-model acestep-5Hz-lm-0.6B --quantize 4")
    assert main(["devices", "--plan"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" --engine mlx")
    assert main(["devices", "--plan", "2"]) == 0
    assert "nothing fits: the least that there is needs" in capsys.readouterr().out
    assert main(["devices", "--plan", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["working_set_gib"] > 0
    assert len(told["rows"]) == 2 * 3 * 3
    with pytest.raises(SystemExit):
        main(["devices", "--plan", "much"])
    assert devices.planned(16)["best"]["bits"] == 8
