"""Weights in few bits: held and multiplied on the device under test."""

from __future__ import annotations

from typing import Any

import torch

from conformance.entrypoints import covers
from conformance.suite.support import SECONDS, STEPS, Api
from conformance.targets import Target


@covers(
    "A1",
    "A3",
    "device.bits:packed_rows",
    "device.dtypes:quick_dtype",
    "engines.loading:load_engine",
    "engines.torch.loading:make_small",
    "engines.torch.quantised:Quantised",
    "engines.torch.quantised:Quantised.forward",
    "engines.torch.quantised:are_alike",
    "engines.torch.quantised:joined",
    "engines.torch.quantised:packed",
    "engines.torch.quantised:quantise",
)
def test_a_song_of_weights_in_eight_bits(api: Api, target: Target) -> None:
    """The weights are whole numbers on the target, and the song is nearly that of the others."""
    made: dict[str | None, Any] = {}
    for kind in (None, "int8_weight_only"):
        handler = api.get("handler:AceStepHandler")()
        message, ok = handler.initialize_service(
            config_path="demo", device=target.device, quantization=kind, dtype="float32"
        )
        assert ok, message
        answer = handler.generate_music(
            "piano", audio_duration=SECONDS, inference_steps=STEPS, seed=1, use_random_seed=False
        )
        assert answer["success"], answer["error"]
        made[kind] = answer["audios"][0]["tensor"]
        if kind is not None:
            held = handler.pipeline if handler.pipeline is not None else handler.engine.parts
            layer = held.transformer.layers[0].mlp.down_proj
            if target.engine == "mlx":
                assert "scales" in layer, "the weights are not in few bits"
            else:
                assert layer.weight.dtype == torch.int8
                assert layer.weight.device.type == target.device
        handler.unload()
    policy = api.get("device:resolve")(target.device)
    quick = policy.for_weights("BF16").dtype
    assert quick in (policy.dtype, torch.bfloat16)
    error = (made["int8_weight_only"] - made[None]).pow(2).mean() / made[None].pow(2).mean()
    assert error.sqrt() < 0.05


@covers("engines.torch.quantised:unpacked", "engines.torch.quantised:Quantised.extra_repr")
def test_a_product_of_weights_in_four_bits(api: Api, target: Target) -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
    given = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    layer = api.get("engines.torch.quantised:Quantised")(weight.to(target.device), None, "int4")
    made = layer(given.to(target.device)).to("cpu")
    exact = given @ weight.T
    assert (made - exact).pow(2).mean().sqrt() < 0.15 * exact.pow(2).mean().sqrt()
    assert "int4" in repr(layer)
