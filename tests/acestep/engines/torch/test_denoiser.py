"""Tests of the steps: equal to diffusers' transformer, whichever way attention is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from acestep.device import DevicePolicy, resolve
from acestep.diffusion.schedule import Schedule
from acestep.engines.torch import denoiser
from acestep.engines.torch.attention import PackedAttention, SdpaAttention, packed_starts
from acestep.engines.torch.denoiser import Denoiser
from acestep.engines.torch.transformer import StepTransformer

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "in_channels": 24,
    "audio_acoustic_hidden_dim": 8,
    "sliding_window": 20,
}


class Recording(DevicePolicy):
    """The host in the part of a device that records steps."""

    @property
    def records(self) -> bool:
        return True

    def has_packed_attention(self, dtype: torch.dtype) -> bool:
        return True


@pytest.fixture(scope="module")
def model() -> Any:
    """A transformer of diffusers with random weights, float32."""
    from diffusers.models import AceStepTransformer1DModel

    torch.manual_seed(0)
    return AceStepTransformer1DModel(**SHAPE).eval().requires_grad_(False)


@pytest.fixture
def recording() -> DevicePolicy:
    host = resolve("cpu")
    return Recording(**{f.name: getattr(host, f.name) for f in dataclasses.fields(host)})


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest: int,
    longest_key: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> tuple[torch.Tensor]:
    """What the kernel for packed sequences is defined to compute, one sequence at a time."""
    made = torch.zeros_like(query)
    for number in range(len(starts) - 1):
        rows = slice(int(starts[number]), int(starts[number + 1]))
        columns = slice(int(key_starts[number]), int(key_starts[number + 1]))
        assert rows.stop - rows.start <= longest
        assert columns.stop - columns.start <= longest_key
        if rows.start == rows.stop or columns.start == columns.stop:
            continue
        q, k, v = (t.transpose(0, 1) for t in (query[rows], key[columns], value[columns]))
        shared = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])[None]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if window_size_left >= 0:
            seen = (distance <= window_size_left) & (-distance <= window_size_right)
        made[rows] = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(
            0, 1
        )
    return (made,)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(batch: int, frames: int, tokens: int = 9) -> tuple[torch.Tensor, ...]:
    """State, condition and context of a song."""
    return drawn(batch, frames, 8), drawn(batch, tokens, 64), drawn(batch, frames, 16)


def expected(model: Any, state: torch.Tensor, *conditions: torch.Tensor, time: float) -> Any:
    times = torch.full((state.shape[0],), time)
    encoded, context = conditions
    return model(
        hidden_states=state,
        timestep=times,
        timestep_r=times,
        encoder_hidden_states=encoded,
        context_latents=context,
        return_dict=False,
    )[0]


# One block; a dense mask; blocks with a part left over; exactly full blocks; an odd frame.
@pytest.mark.parametrize("frames", [30, 90, 560, 1024, 701])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_equals_diffusers(model: Any, policy: DevicePolicy, frames: int, batch: int) -> None:
    state, encoded, context = inputs(batch, frames)
    schedule = Schedule.make(3, shift=3.0)
    made = Denoiser(StepTransformer(model), policy).velocity(encoded, context, schedule.times)
    for step, time in enumerate(schedule.times):
        wanted = expected(model, state, encoded, context, time=time)
        torch.testing.assert_close(made(state, step), wanted, atol=2e-5, rtol=1e-5)


# Neither widths nor heads are powers of two; the window is shorter than the song.
ODD = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "sliding_window": 4,
    "encoder_hidden_size": 64,
}


def odd_model(**shape: Any) -> Any:
    from diffusers.models import AceStepTransformer1DModel

    torch.manual_seed(0)
    model = AceStepTransformer1DModel(**(SHAPE | ODD | shape))
    for name, weight in model.named_parameters():
        # Norms and gates as a trained model has them, no two channels alike.
        if "norm" in name or "scale_shift" in name:
            weight.data.add_(0.3 * torch.randn(weight.shape))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(("batch", "steps"), [(1, 2), (2, 1)])
def test_a_fused_step_equals_diffusers(
    own_kernels: bool, batch: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, dtype, atol = resolve("cpu"), torch.float32, 2e-5
    if own_kernels:
        policy, dtype, atol = resolve(), torch.bfloat16, 0.05
    monkeypatch.setattr(DevicePolicy, "has_tile_kernels", lambda self, dtype: True)
    shape = {"head_dim": 64, "hidden_size": 256} if own_kernels else {}
    model = odd_model(**shape)
    song = inputs(batch, 13, 5)
    schedule = Schedule.make(steps)
    wanted = [expected(model, *song, time=time) for time in schedule.times]
    model.to(policy.device, dtype)
    fused = StepTransformer(model)
    fused.compile(policy)
    assert fused._kernels is not None
    state, encoded, context = (x.to(policy.device, dtype) for x in song)
    velocity = Denoiser(fused, policy).velocity(encoded, context, schedule.times)
    for step, answer in enumerate(wanted):
        made = velocity(state, step).float().cpu()
        scale = float(answer.abs().max()) if own_kernels else 1.0
        torch.testing.assert_close(made, answer, atol=atol * scale, rtol=1e-5)


def test_heads_of_an_odd_size_are_left_to_inductor(
    own_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DevicePolicy, "has_tile_kernels", lambda self, dtype: True)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    fused = StepTransformer(odd_model(head_dim=12))
    fused.compile(resolve("cpu"))
    assert fused._kernels is None
    assert all(layer.compiled is not None for layer in fused.layers)


def test_one_recording_serves_every_song_that_fits(
    model: Any, recording: DevicePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter song after a longer one hears nothing of it, nor of the room left over."""
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    recorded: list[Any] = []

    def captured(policy: DevicePolicy, step: Any, pool: Any = None) -> Any:
        recorded.append(step)
        return step

    monkeypatch.setattr(DevicePolicy, "captured", captured)
    steps = Denoiser(StepTransformer(model), recording)
    schedule = Schedule.make(2)
    for frames, tokens in ((256, 128), (101, 5), (230, 90)):
        state, encoded, context = inputs(2, frames, tokens)
        made = steps.velocity(encoded, context, schedule.times)
        for step in (0, 1):
            wanted = expected(model, state, encoded, context, time=schedule.times[step])
            torch.testing.assert_close(made(state, step), wanted, atol=2e-5, rtol=1e-5)
    assert len(recorded) == 1
    _, encoded, context = inputs(2, 258)
    steps.velocity(encoded, context, schedule.times)
    assert len(recorded) == 2, "a song that does not fit gets a recording of its own"
    for frames in (600, 900, 1200):
        _, encoded, context = inputs(2, frames)
        steps.velocity(encoded, context, schedule.times)
    assert len(steps._recordings) == denoiser.MAX_RECORDINGS


def test_songs_of_two_sizes_do_not_disturb_each_other(
    model: Any, recording: DevicePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a step with guidance and one without are in use at the same time."""
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    steps = Denoiser(StepTransformer(model), recording)
    state, encoded, context = inputs(1, 40)
    schedule = Schedule.make(1)
    first = steps.velocity(encoded, context, schedule.times)
    pair = torch.cat([-encoded, encoded]), torch.cat([context, context])
    second = steps.velocity(*pair, schedule.times)
    one, other = first(state, 0), second(torch.cat([state, state]), 0)
    torch.testing.assert_close(one, expected(model, state, encoded, context, time=1.0))
    torch.testing.assert_close(other[:1], expected(model, state, -encoded, context, time=1.0))
    assert not torch.allclose(one, other[:1])


def test_both_attentions_agree() -> None:
    """Windows at the edges of blocks and of the sequence."""
    for tokens in (1, 128, 129, 200, 384, 700):
        query, key, value = (
            drawn(2, tokens, 4, 16),
            drawn(2, tokens, 2, 16),
            drawn(2, tokens, 2, 16),
        )
        starts = torch.tensor(packed_starts(tokens, tokens, 2))
        packed = PackedAttention(starts, starts, tokens, tokens, 100)
        plain = SdpaAttention(tokens, 100, 2, query)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
            for name in ("full", "windowed", "cross"):
                made = getattr(plain, name)(query, key, value)
                torch.testing.assert_close(made, getattr(packed, name)(query, key, value))


def test_adapters_and_exchanged_weights_are_noticed(model: Any, policy: DevicePolicy) -> None:
    import copy

    import peft

    model = copy.deepcopy(model)
    state, encoded, context = inputs(1, 40)
    schedule = Schedule.make(1)
    steps = StepTransformer(model)
    assert steps.is_current(model)
    torch.testing.assert_close(
        model.layers[0].self_attn.to_q.weight.data_ptr(),
        model.layers[0].self_attn.to_k.weight.data_ptr() - 64 * 64 * 4,
    )
    torch.manual_seed(1)
    model.add_adapter(
        peft.LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    assert not steps.is_current(model)
    made = Denoiser(StepTransformer(model), policy).velocity(encoded, context, schedule.times)(
        state, 0
    )
    wanted = expected(model, state, encoded, context, time=1.0)
    torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-5)
    model.disable_adapters()
    assert not torch.allclose(expected(model, state, encoded, context, time=1.0), wanted)
