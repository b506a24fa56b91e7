"""Tests of the transformer's Triton kernels: on a Hopper GPU as they are, elsewhere interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from acestep.device import DevicePolicy, resolve
from acestep.sampling import Denoiser, Schedule
from acestep.transformer import StepTransformer

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "in_channels": 24,
    "audio_acoustic_hidden_dim": 8,
    "sliding_window": 4,
    "encoder_hidden_size": 48,
}
"""Neither widths nor heads are powers of two."""


def make_model(**shape: Any) -> Any:
    from diffusers.models import AceStepTransformer1DModel

    torch.manual_seed(0)
    model = AceStepTransformer1DModel(**(SHAPE | shape))
    for name, weight in model.named_parameters():
        # Norms and gates as a trained model has them, no two channels alike.
        if "norm" in name or "scale_shift" in name:
            weight.data.add_(0.3 * torch.randn(weight.shape))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fused_step_equals_diffusers(
    own_kernels: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, dtype, atol = resolve("cpu"), torch.float32, 2e-5
    if own_kernels:
        policy, dtype, atol = resolve(), torch.bfloat16, 0.05
    monkeypatch.setattr(DevicePolicy, "has_tile_kernels", lambda self, dtype: True)
    shape = {"head_dim": 64, "hidden_size": 256} if own_kernels else {}
    model = make_model(**shape)
    random = torch.Generator().manual_seed(0)
    width = model.config.hidden_size
    state, encoded, context = (
        torch.randn(batch, *rest, generator=random) for rest in ((19, 8), (5, 48), (19, 16))
    )
    schedule = Schedule.make(2)
    wanted = []
    for time in schedule.times:
        times = torch.full((batch,), time)
        wanted.append(
            model(
                hidden_states=state,
                timestep=times,
                timestep_r=times,
                encoder_hidden_states=encoded,
                context_latents=context,
                return_dict=False,
            )[0]
        )
    assert width == model.layers[0].self_attn_norm.weight.numel()
    model.to(policy.device, dtype)
    fused = StepTransformer(model)
    fused.compile(policy)
    assert fused._kernels is not None
    state, encoded, context = (x.to(policy.device, dtype) for x in (state, encoded, context))
    velocity = Denoiser(fused, policy).velocity(encoded, context, schedule)
    for step, expected in enumerate(wanted):
        made = velocity(state, step).float().cpu()
        scale = float(expected.abs().max()) if own_kernels else 1.0
        torch.testing.assert_close(made, expected, atol=atol * scale, rtol=1e-5)


def test_heads_of_an_odd_size_are_left_to_inductor(
    own_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DevicePolicy, "has_tile_kernels", lambda self, dtype: True)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    fused = StepTransformer(make_model(head_dim=12))
    fused.compile(resolve("cpu"))
    assert fused._kernels is None
    assert all(layer.compiled is not None for layer in fused.layers)
