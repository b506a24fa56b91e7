"""Weights in few bits: how far off they are, and that nothing is lost beside that."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from acestep.device import QUANTIZATIONS, quantization_of, resolve
from acestep.engines.torch.quantised import Quantised, are_alike, joined, packed, quantise, unpacked
from acestep.errors import RequestError
from acestep.handler import AceStepHandler

# Relative errors of a product of random numbers: a step of 2 / 254 of the largest of 512, and so on.
ERRORS = {"int8": 0.009, "w8a8": 0.013, "fp8": 0.03, "int4": 0.11}


def weights(outputs: int = 96, inputs: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    spread = torch.logspace(-2, 1, outputs)[:, None]
    return (spread * torch.randn(outputs, inputs, generator=generator)).bfloat16().float()


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("rows", [1, 20, 300])
def test_a_product_is_as_close_as_its_bits_allow(kind: str, rows: int) -> None:
    """Of each output by itself, whatever the others' sizes; few rows and many; with a bias."""
    weight, bias = weights(), torch.randn(96, generator=torch.Generator().manual_seed(2))
    given = torch.randn(2, rows, 512, generator=torch.Generator().manual_seed(3))
    sizes = torch.logspace(-1, 1, rows)[:, None]
    layer = Quantised(weight, bias, kind, packed_rows=8)
    exact = F.linear(given * sizes, weight)
    # How large an output is as a rule.
    spread = sizes * weight.pow(2).sum(1).sqrt()
    for dtype, rounding in ((torch.float32, 0.0), (torch.bfloat16, 0.006)):
        made = layer((given * sizes).to(dtype))
        assert made.dtype == dtype
        assert made.shape == exact.shape
        large = spread > 1 if rounding else spread > 0
        error = ((made.float() - exact - bias) / spread)[:, large].pow(2).mean().sqrt()
        assert error < ERRORS[kind] + rounding, dtype
        assert error > ERRORS[kind] / 2


def test_outputs_that_cublas_does_not_multiply_are_as_in_eight_bits() -> None:
    """The built-in checkpoint has layers of 341 outputs, which `_int_mm` refuses on CUDA."""
    weight = weights(outputs=341)
    given = torch.randn(20, 512, generator=torch.Generator().manual_seed(3))
    made = Quantised(weight, None, "w8a8")(given)
    assert torch.equal(made, Quantised(weight, None, "int8")(given))


def test_weights_in_few_bits_are_whole_numbers_times_a_scale() -> None:
    weight = weights()
    weight[3] = 0
    held, scale = packed(weight, "int8")
    assert held.dtype == torch.int8
    assert torch.equal(held[3], torch.zeros(512, dtype=torch.int8))
    assert held.abs().amax(1)[:3].min() >= 125, "the range is used"
    # What is held comes back the same, in four bits too.
    for kind in ("int8", "int4"):
        held, scale = packed(weight, kind)
        back = unpacked(held, scale, torch.float32) if kind == "int4" else held * scale[:, None]
        again, _ = packed(back.float(), kind)
        assert (again.int() - held.int()).abs().max() <= (1 if kind == "int8" else 17)
    assert packed(weight, "int4")[0].shape == (96, 256)


def test_layers_over_one_input_become_one() -> None:
    weight, given = weights(), torch.randn(5, 512, generator=torch.Generator().manual_seed(4))
    for kind in QUANTIZATIONS:
        parts = [Quantised(rows, None, kind) for rows in weight.split([64, 16, 16])]
        expected = torch.cat([part(given) for part in parts], dim=-1)
        assert are_alike(*parts)
        whole = joined(*parts)
        torch.testing.assert_close(whole(given), expected)
        assert parts[1].weight.data_ptr() == whole.weight[64:].data_ptr(), "held once"
    other = Quantised(weight, None, "fp8")
    assert not are_alike(parts[0], other)
    assert not are_alike(parts[0], nn.Linear(512, 16))


def test_the_layers_of_stacks_change_and_nothing_else() -> None:
    layer = nn.ModuleDict({"wide": nn.Linear(128, 64), "odd": nn.Linear(30, 64)})
    model = nn.ModuleDict({"layers": nn.ModuleList([layer]), "out": nn.Linear(128, 64)})
    quantise(model, "int8", resolve("cpu"))
    assert isinstance(layer["wide"], Quantised)
    assert type(layer["odd"]) is nn.Linear
    assert type(model["out"]) is nn.Linear


@pytest.mark.parametrize("asked", ["int8_weight_only", "fp8-weight-only", "W8A8_dynamic", "int4"])
def test_names_as_people_write_them(asked: str) -> None:
    kind = quantization_of(asked)
    assert kind in QUANTIZATIONS
    assert resolve("cpu", quantization=asked).quantization == kind


def test_names_that_are_none() -> None:
    for nothing in (None, "", "none", False):
        assert quantization_of(nothing) is None
    with pytest.raises(RequestError, match="unknown quantization 'int3'; choose from int8, int4"):
        quantization_of("int3")
    # conformance: ignore[DEV101] a policy about a device that need not be there
    mac = dataclasses.replace(resolve("cpu"), device=torch.device("mps"))
    assert mac.with_quantization("int4").quantization == "int4"
    for kind in ("fp8", "w8a8"):
        with pytest.raises(RequestError, match=f"'{kind}' is not available on mps: Metal"):
            mac.with_quantization(kind)


def test_a_checkpoint_in_eight_bits_makes_nearly_the_same_song(trained: Path) -> None:
    """The built-in one: the same notes to 30 dB; its adapters are refused in a line."""
    made: dict[str | None, Any] = {}
    for kind in (None, "int8"):
        handler = AceStepHandler()
        message, ok = handler.initialize_service(
            config_path=str(trained), device="cpu", quantization=kind
        )
        assert ok, message
        assert ("int8 weights" in message) is (kind is not None)
        answer = handler.generate_music("calm piano", audio_duration=1, seed=1, inference_steps=2)
        made[kind] = answer["audios"][0]["tensor"]
    with pytest.raises(RequestError, match="quantised weights"):
        handler.set_lora_scale(1.0)
    error = (made["int8"] - made[None]).pow(2).mean().sqrt() / made[None].pow(2).mean().sqrt()
    assert 1e-4 < error < 0.03
