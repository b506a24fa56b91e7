"""ACE-Step's pipeline as diffusers ships it, and this project's decoder, on the simulated device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from acestep import device
from acestep.demo import recipe
from acestep.engines.torch import codec
from conformance import simulate

DEVICE = "mps"
LATENT = 8


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A narrow pipeline with ACE-Step's structure and the real VAE's ratios."""
    made = recipe.make_pipeline(
        recipe.DemoShape(latent=LATENT, layers=2, hidden=64, text_hidden=64)
    )
    made.set_progress_bar_config(disable=True)
    return made


def song(pipeline: Any, seconds: float) -> torch.Tensor:
    """Audio of a fixed seed, on the host."""
    made = pipeline(
        prompt="a quiet piano",
        lyrics="la la",
        audio_duration=seconds,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).audios
    assert isinstance(made, torch.Tensor)
    return made.cpu()


def test_generation_is_bit_equal(pipeline: Any) -> None:
    expected = song(pipeline, 1.2)
    with simulate.mps(fallback=False) as sim:
        pipeline.to(DEVICE)
        assert pipeline.transformer.device == torch.device("mps:0")
        assert torch.equal(song(pipeline, 1.2), expected)
        assert not sim.recorder.fallbacks
        pipeline.to("cpu")
    assert expected.abs().max() > 0


def test_plain_diffusers_fails_on_five_seconds_where_this_project_decodes(pipeline: Any) -> None:
    latents = torch.randn(1, LATENT, 125, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = pipeline.vae.decode(latents).sample
    with simulate.mps(fallback=False):
        pipeline.to(DEVICE)
        with pytest.raises(NotImplementedError, match="Output channels > 65536 not supported"):
            song(pipeline, 5.0)
        audio = codec.decode(pipeline.vae, latents, device.resolve(DEVICE))
        pipeline.to("cpu")
    assert audio.shape == (1, 2, 240_000)
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-5)


def adapter_gradients(transformer: torch.nn.Module, where: str) -> list[torch.Tensor]:
    """Gradients of a loss on the transformer's adapters, on the host."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 8, LATENT, generator=generator).to(where)
    outputs = transformer(
        hidden_states=hidden,
        timestep=torch.tensor([0.5], device=where),
        timestep_r=torch.tensor([0.5], device=where),
        encoder_hidden_states=torch.randn(1, 4, 64, generator=generator).to(where),
        context_latents=torch.randn(1, 8, 2 * LATENT, generator=generator).to(where),
        return_dict=False,
    )
    (outputs[0] - hidden).square().mean().backward()
    adapters = [p for p in transformer.parameters() if p.requires_grad]
    gradients = [p.grad.cpu() for p in adapters if p.grad is not None]
    for parameter in adapters:
        parameter.grad = None
    assert len(gradients) == len(adapters) > 0
    assert all(gradient.is_cpu for gradient in gradients)
    return gradients


def test_adapter_gradients_are_bit_equal(pipeline: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    transformer = pipeline.transformer
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    transformer.add_adapter(config)
    expected = adapter_gradients(transformer, "cpu")
    with simulate.mps(fallback=False):
        transformer.to(DEVICE)
        actual = adapter_gradients(transformer, DEVICE)
        transformer.to("cpu")
    assert any(gradient.abs().max() > 0 for gradient in expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
