"""Weights in few bits: held and multiplied on the device under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.entrypoints import covers
from conformance.suite.support import SECONDS, STEPS, Api, generate, song
from conformance.targets import Target
from conformance.tree import Absent


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


@covers(
    "A1",
    "cli.download:run",
    "cli.download:small_folders",
    "checkpoint.held:*",
    "checkpoint.small:is_made",
    "checkpoint.small:packed_or_not",
    "checkpoint.small:put_in",
    "checkpoint.small:saved_small",
    "checkpoint.small:small_layers",
    "engines.loading:packing",
    "lm.pt_weights:*",
)
def test_models_in_folders_of_few_bits(
    api: Api, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made by the command, and loaded from there on the target: a song and a plan."""
    if target.engine == "mlx":
        raise Absent("MLX's folders have a case of their own")
    main = api.get("acestep_v15_pipeline:main")
    assert main(["download", "demo", "--quantize", "int8", "--to", str(tmp_path)]) == 0
    planner, checkpoint = capsys.readouterr().out.split()
    handler = api.get("handler:AceStepHandler")()
    message, ok = handler.initialize_service(
        config_path=checkpoint, device=target.device, dtype="float32"
    )
    assert ok, message
    assert "int8 weights" in message
    song(generate(api, handler))
    handler.unload()
    made = api.get("llm_inference:LLMHandler")()
    message, ok = made.initialize(lm_model_path=planner, device=target.device)
    assert ok, message
    assert made.policy.quantization == "int8"
    made.unload()


@covers("engines.torch.quantised:unpacked", "engines.torch.quantised:Quantised.extra_repr")
def test_a_product_of_weights_in_four_bits(api: Api, target: Target) -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
    given = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    layer = api.get("engines.torch.quantised:Quantised")(weight.to(target.device), None, "int4")
    made = layer(given.to(target.device)).to("cpu")
    exact = given @ weight.T
    assert (made - exact).pow(2).mean().sqrt() < 0.15 * exact.pow(2).mean().sqrt()
    assert "int4" in repr(layer)
