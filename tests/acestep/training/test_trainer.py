"""Tests of the trainer: it learns, resumes exactly, and stops with a reason."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from acestep.corrections.masks import lean_masks
from acestep.device import resolve
from acestep.diffusion.schedule import Schedule
from acestep.errors import DeviceError, RequestError, TrainingError
from acestep.training import trainer as trainer_module
from acestep.training.configs import TrainingConfig
from acestep.training.data import Clip
from acestep.training.flow import flow_loss, noise_levels, noisy, velocity
from acestep.training.log import COLUMNS, LossLog, read_log
from acestep.training.state import RunState, load_state, save_state
from acestep.training.trainer import Trainer

CONFIG = TrainingConfig(
    steps=6, batch_size=3, accumulate=2, learning_rate=1e-2, warmup=1, save_every=2, seed=4
)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_log(folder / "loss.csv")]


def test_the_loss_falls(model: nn.Module, clips: list[Clip], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=60, save_every=0)
    Trainer(model, "cpu", config).fit(clips, tmp_path)
    seen = losses(tmp_path)
    assert len(seen) == 60
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])
    assert list((tmp_path / "tensorboard").iterdir())


class KilledError(Exception):
    """Stands for the process being killed."""


@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    model: nn.Module, clips: list[Clip], tmp_path: Path, killed_at: int
) -> None:
    fresh = functools.partial(copy.deepcopy, model)
    whole = fresh()
    Trainer(whole, "cpu", CONFIG).fit(clips, tmp_path / "whole")

    def kill(done: Any) -> None:
        if done.step == killed_at:
            raise KilledError

    with pytest.raises(KilledError):
        Trainer(fresh(), "cpu", CONFIG).fit(clips, tmp_path / "parts", on_step=kill)
    again = fresh()
    Trainer(again, "cpu", CONFIG).fit(clips, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_finished_run_is_left_alone(model: nn.Module, clips: list[Clip], tmp_path: Path) -> None:
    Trainer(model, "cpu", CONFIG).fit(clips, tmp_path)
    steps: list[Any] = []
    Trainer(model, "cpu", CONFIG).fit(clips, tmp_path, on_step=steps.append)
    assert not steps


def test_other_settings_do_not_continue_a_run(
    model: nn.Module, clips: list[Clip], tmp_path: Path
) -> None:
    Trainer(model, "cpu", CONFIG).fit(clips, tmp_path)
    other = Trainer(model, "cpu", dataclasses.replace(CONFIG, learning_rate=1.0, seed=1))
    with pytest.raises(RequestError, match="other settings \\(learning_rate, seed\\)"):
        other.fit(clips, tmp_path)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "run.json"])
def test_a_damaged_state_is_named(
    model: nn.Module, clips: list[Clip], tmp_path: Path, file: str
) -> None:
    Trainer(model, "cpu", CONFIG).fit(clips, tmp_path)
    (tmp_path / "state" / file).write_bytes(b"\x01")
    with pytest.raises(RequestError, match="state is damaged"):
        Trainer(model, "cpu", CONFIG).fit(clips, tmp_path)


def test_a_state_is_replaced_whole(tmp_path: Path) -> None:
    first = RunState(1, {}, {"w": torch.zeros(2)}, {})
    save_state(tmp_path / "state", first)
    broken = RunState(2, {}, {"w": torch.ones(2)}, {"unpicklable": lambda: None})
    with pytest.raises(Exception, match="pickle"):
        save_state(tmp_path / "state", broken)
    kept = load_state(tmp_path / "state", {})
    assert kept is not None
    assert kept.step == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_batches_are_exact_whatever_the_lengths(model: nn.Module, clips: list[Clip]) -> None:
    """Clips of different lengths go through the model apart; the loss is that of their mean."""
    generator = torch.Generator().manual_seed(0)
    cropped = [clip.batch(30.0, generator) for clip in clips]
    parts = list(trainer_module._grouped(cropped, masked=False))
    assert sorted(len(batch["latents"]) for batch, _ in parts) == [2, 3]
    assert sum(share for _, share in parts) == pytest.approx(1.0)


def test_conditions_of_different_lengths_share_a_batch_under_a_mask(clips: list[Clip]) -> None:
    generator = torch.Generator().manual_seed(0)
    cropped = [clip.batch(30.0, generator) for clip in clips]
    [(batch, share)] = trainer_module._grouped(cropped, masked=True)
    assert share == 1.0
    for number, clip in enumerate(clips):
        told = batch["encoder_attention_mask"][number]
        assert torch.equal(batch["encoder_hidden_states"][number, told], clip.condition[0])
    [(even, _)] = trainer_module._grouped(cropped[::2], masked=True)
    assert "encoder_attention_mask" not in even
    shorter = clips[1].batch(0.2, generator)
    assert len(list(trainer_module._grouped([*cropped, shorter], masked=True))) == 2


def padded(frames: int) -> tuple[torch.Tensor, ...]:
    """State, times, conditions of three lengths, their mask, and contexts, of three items."""
    generator = torch.Generator().manual_seed(frames)
    state = torch.randn(3, frames, 4, generator=generator)
    conditions = torch.randn(3, 9, 64, generator=generator)
    mask = torch.arange(9) < torch.tensor([[4], [9], [6]])
    return state, torch.tensor([0.2, 0.9, 0.5]), conditions, mask, torch.cat([state] * 2, dim=-1)


# More patches than the sliding window holds to one side, and fewer.
@pytest.mark.parametrize("frames", [30, 290])
def test_what_a_mask_hides_counts_for_nothing(base_folder: Path, frames: int) -> None:
    """Velocities and gradients are those of each item alone with its own condition."""
    from diffusers import AceStepTransformer1DModel

    state, times, conditions, mask, context = padded(frames)
    alone = AceStepTransformer1DModel.from_pretrained(base_folder / "transformer")
    together = copy.deepcopy(alone)
    lean_masks(together)
    apart = [
        velocity(
            alone,
            state[[i]],
            times[[i]],
            {"encoder_hidden_states": conditions[[i]][:, mask[i]], "context_latents": context[[i]]},
        )
        for i in range(3)
    ]
    told = {
        "encoder_hidden_states": conditions,
        "encoder_attention_mask": mask,
        "context_latents": context,
    }
    joined = velocity(together, state, times, told)
    torch.testing.assert_close(joined, torch.cat(apart), rtol=1e-4, atol=1e-5)
    torch.cat(apart).square().mean().backward()
    joined.square().mean().backward()
    for (name, one), other in zip(alone.named_parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)
    # Without a mask it is called as before, also after a call with one.
    del told["encoder_attention_mask"]
    torch.testing.assert_close(
        velocity(together, state, times, told), velocity(alone, state, times, told),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_every_clip_is_seen_once_in_a_pass(model: nn.Module) -> None:
    trainer = Trainer(model, "cpu", dataclasses.replace(CONFIG, batch_size=2, accumulate=1))
    seen = []
    for step in range(6):
        trainer.step = step
        for process in range(2):
            seen += trainer._indices(8, process, 2)
    assert sorted(seen[:8]) == sorted(seen[8:16]) == sorted(seen[16:]) == list(range(8))
    assert seen[:8] != seen[8:16]


def test_only_what_requires_gradients_is_trained(
    model: Any, clips: list[Clip], tmp_path: Path
) -> None:
    model.inner.requires_grad_(False)
    before = model.inner.weight.clone()
    trainer = Trainer(model, "cpu", CONFIG)
    trainer.fit(clips, tmp_path)
    assert torch.equal(model.inner.weight, before)
    assert set(trainer.trained()) == {"outer.weight", "outer.bias"}


def test_a_loss_that_is_not_finite_stops_the_run(
    model: nn.Module, clips: list[Clip], tmp_path: Path
) -> None:
    clips[0].latents[0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"the loss is nan .* lower learning rate"):
        Trainer(model, "cpu", CONFIG).fit(clips, tmp_path)


def test_running_out_of_memory_says_what_to_do(
    model: nn.Module, clips: list[Clip], tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("allocator: no more")

    model.register_forward_hook(full)
    with pytest.raises(TrainingError, match=r"cpu ran out of memory .* smaller batch"):
        Trainer(model, "cpu", CONFIG).fit(clips, tmp_path)


def test_samples_are_asked_for_in_time(model: nn.Module, clips: list[Clip], tmp_path: Path) -> None:
    asked: list[int] = []
    config = dataclasses.replace(CONFIG, sample_every=3)
    Trainer(model, "cpu", config).fit(clips, tmp_path, on_sample=asked.append)
    assert asked == [3, 6]


def test_autocast_follows_the_dtype(model: Any) -> None:
    policy = resolve("cpu").for_training("bfloat16")
    seen: list[torch.dtype] = []
    model.inner.register_forward_hook(lambda *inputs: seen.append(inputs[2].dtype))
    batch = {
        "latents": torch.ones(1, 3, 4),
        "encoder_hidden_states": torch.ones(1, 2, 8),
        "context_latents": torch.ones(1, 3, 8),
    }
    assert Trainer(model, policy).training_step(batch).dtype == torch.float32
    Trainer(model, "cpu").training_step(batch)
    assert seen == [torch.bfloat16, torch.float32]


def test_devices_and_dtypes_are_used_or_refused(model: nn.Module) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        Trainer(model, "tpu")
    with pytest.raises(RequestError, match="float16 overflows"):
        Trainer(model, "cpu", TrainingConfig(dtype="float16"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("lora_rank", -1),
        ("lora_alpha", -2.0),
        ("crop_seconds", float("inf")),
        ("time_shift", 0.0),
    ],
)
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"{setting} .* is out of range"):
        TrainingConfig(**{setting: value})  # type: ignore[arg-type]


def test_the_rate_rises_then_falls() -> None:
    config = TrainingConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [config.rate_at(step) for step in range(100)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.01


def test_flow_matching_by_hand() -> None:
    """The loss of a model that answers zero is the mean square of noise minus latents."""
    latents, noise = torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), -1.0)
    state, target = noisy(latents, noise, torch.tensor([0.25]))
    assert torch.equal(state, torch.full((1, 2, 3), 0.75 * 2 - 0.25))
    assert torch.equal(target, torch.full((1, 2, 3), -3.0))
    loss = flow_loss(
        lambda hidden_states, **_: torch.zeros_like(hidden_states),
        latents,
        noise,
        torch.tensor([0.25]),
        {},
    )
    assert loss.tolist() == [9.0]


@given(count=st.integers(1, 40), shift=st.floats(0.2, 5.0), seed=st.integers(0, 1000))
def test_noise_levels_cover_the_way_from_noise_to_music(
    count: int, shift: float, seed: int
) -> None:
    """One level lies in each part of the schedule that a sampler of so many steps follows."""
    levels = noise_levels(count, torch.Generator().manual_seed(seed), shift)
    edges = torch.tensor(Schedule.make(count, shift).times).flip(0)
    parts = zip(levels.sort().values, [0.0, *edges[:-1].tolist()], edges.tolist(), strict=True)
    assert all(low - 1e-5 <= level <= high + 1e-5 for level, low, high in parts)


def test_noise_levels_are_not_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    first = [bool(noise_levels(2, generator)[0] < 0.5) for _ in range(40)]
    assert 10 < sum(first) < 30


def test_a_torn_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    log = LossLog(tmp_path, 0)
    for step in range(3):
        log.write({"step": step, **dict.fromkeys(COLUMNS[1:], 0.5)})
    log.close()
    with (tmp_path / "loss.csv").open("a") as stream:
        stream.write("3,0.1")
    assert [row["step"] for row in read_log(tmp_path / "loss.csv")] == [0, 1, 2]
    LossLog(tmp_path, 2).close()
    assert [row["step"] for row in read_log(tmp_path / "loss.csv")] == [0, 1]
