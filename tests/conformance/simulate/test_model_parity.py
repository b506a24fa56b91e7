"""Models of transformers and diffusers give on the simulated device what they give on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance import simulate

_SPEC = importlib.util.spec_from_file_location(
    "model_zoo", Path(__file__).with_name("model_zoo.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
zoo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(zoo)

DEVICE = "mps"


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in a model's output."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def made(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The same model and inputs each time."""
    torch.manual_seed(0)
    model, inputs = zoo.MODELS[name]()
    return model.eval(), inputs


def moved(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs on the simulated device."""
    return {key: value.to(DEVICE) for key, value in inputs.items()}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_forward_is_bit_equal(name: str) -> None:
    model, inputs = made(name)
    with torch.no_grad():
        expected = [output.clone() for output in tensors(model(**inputs))]
    with simulate.mps(fallback=False) as simulation, torch.no_grad():
        outputs = list(tensors(model.to(DEVICE)(**moved(inputs))))
        assert all(output.is_mps for output in outputs)
        assert not simulation.recorder.fallbacks
        actual = [output.cpu() for output in outputs]
        model.cpu()
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "t5"])
def test_generation_is_bit_equal(name: str) -> None:
    model, inputs = made(name)
    prompt = {"input_ids": inputs["input_ids"]}
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**prompt, **settings)  # type: ignore[operator]
    with simulate.mps(fallback=False):
        model.to(DEVICE)
        actual = model.generate(**moved(prompt), **settings)  # type: ignore[operator]
        assert actual.is_mps
        assert torch.equal(actual.cpu(), expected)
        model.cpu()


def train(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Gradients and parameters after one step of AdamW, on the host."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    outputs = model(**inputs)
    loss = outputs.loss if "labels" in inputs else next(tensors(outputs)).square().mean()
    loss.backward()
    optimizer.step()
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert len(gradients) > len(parameters) // 2
    return [tensor.detach().cpu() for tensor in (*gradients, *parameters)]


@pytest.mark.parametrize("name", ["bert", "qwen3", "t5", "vit", "oobleck", "unet"])
def test_training_step_is_bit_equal(name: str) -> None:
    model, inputs = made(name)
    expected = train(model, inputs)
    model, inputs = made(name)
    with simulate.mps(fallback=False):
        model.to(DEVICE)
        assert all(parameter.is_mps for parameter in model.parameters())
        actual = train(model, moved(inputs))
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_loading_straight_onto_the_device(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import Qwen3ForCausalLM

    model, inputs = made("qwen3")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with torch.no_grad():
        expected = model(**inputs).logits
    with simulate.mps(fallback=False), torch.no_grad():
        state = load_file(tmp_path / "model.safetensors", device=DEVICE)
        assert all(tensor.is_mps for tensor in state.values())
        loaded = Qwen3ForCausalLM.from_pretrained(tmp_path, device_map=DEVICE)
        assert all(parameter.is_mps for parameter in loaded.parameters())
        assert torch.equal(loaded(**moved(inputs)).logits.cpu(), expected)
        assert torch.equal(
            Qwen3ForCausalLM.from_pretrained(tmp_path).to(DEVICE)(**moved(inputs)).logits.cpu(),
            expected,
        )


def test_diffusers_loading_straight_onto_the_device(tmp_path: Path) -> None:
    from diffusers import DiTTransformer2DModel

    model, inputs = made("dit")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with torch.no_grad():
        expected = model(**inputs).sample
    with simulate.mps(fallback=False), torch.no_grad():
        loaded = DiTTransformer2DModel.from_pretrained(tmp_path, device_map=DEVICE)
        assert torch.equal(loaded(**moved(inputs)).sample.cpu(), expected)
