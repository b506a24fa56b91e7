"""Tests of the decoder's Triton kernels: on a Hopper GPU as they are, elsewhere interpreted.

Triton's interpreter runs a kernel's programs one after the other on the host.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from acestep.device import DevicePolicy, resolve
from acestep.engines.torch import codec, wave_decoder

SMALL = (64, 16, 16)


@pytest.fixture
def kernels(own_kernels: bool) -> ModuleType:
    return importlib.import_module("acestep.engines.torch._wave_kernels")


@pytest.fixture
def make_distinct(make_vae: Callable[..., Any]) -> Callable[..., Any]:
    """`make_vae` with biases, and rates of the activations, that no two channels share."""

    def make(strides: list[int], width: int, latent: int) -> Any:
        vae = make_vae(strides, latent, width)
        for module in vae.decoder.modules():
            for name in ("bias", "alpha", "beta"):
                if isinstance(held := getattr(module, name, None), torch.nn.Parameter):
                    held.data.add_(torch.linspace(-0.3, 0.3, held.numel()).view(held.shape))
        return vae

    return make


def whole(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """In float32 on the host, of weights as they are."""
    audio: torch.Tensor = vae.float().cpu().decode(latents.float().cpu()).sample
    return audio


@pytest.mark.parametrize("frames", [1, 9])
def test_the_kernels_give_what_diffusers_gives(
    kernels: ModuleType, own_kernels: bool, make_distinct: Callable[..., Any], frames: int
) -> None:
    """Both residual paths: units as wide as a tile are one kernel, wider ones are two."""
    tile, device, dtype, width, latent = SMALL, "cpu", torch.float32, 16, 16
    if own_kernels:
        tile, device, dtype, width, latent = kernels.TILE, resolve().name, torch.bfloat16, 128, 64
    vae = make_distinct([2, 4, 6], width, latent).to(device, dtype)
    latents = torch.randn(2, latent, frames, generator=torch.Generator().manual_seed(0))
    latents = latents.to(device, dtype)
    assert kernels.fits(vae.decoder, tile)
    made = kernels.TiledDecoder(vae.decoder, tile)(latents).cpu()
    expected = whole(vae, latents)
    assert (made.dtype, made.shape) == (torch.float32, expected.shape)
    assert expected.abs().max() > 0.1
    atol = 2e-6 if dtype == torch.float32 else 0.02 * float(expected.abs().max())
    torch.testing.assert_close(made, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("strides", "width", "latent"), [([2, 3], 16, 16), ([2, 4], 12, 16), ([2, 4], 16, 8)]
)
def test_what_does_not_divide_into_tiles_is_left_to_others(
    kernels: ModuleType,
    make_distinct: Callable[..., Any],
    strides: list[int],
    width: int,
    latent: int,
) -> None:
    """An odd stride has no halves of phases; the others have rests of channels."""
    assert kernels.fits(make_distinct([2, 4], 16, 16).decoder, SMALL)
    assert not kernels.fits(make_distinct(strides, width, latent).decoder, SMALL)


def test_a_long_song_is_decoded_by_them_where_they_run(
    kernels: ModuleType,
    own_kernels: bool,
    make_distinct: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a Hopper GPU: chunks of one length, launches recorded once for all of them."""
    policy = resolve()
    width, latent, dtype = 128, 64, torch.bfloat16
    if not own_kernels:
        monkeypatch.setattr(kernels, "TILE", SMALL)
        width, latent, dtype = 16, 16, torch.float32
        for name in ("tunes", "records"):
            monkeypatch.setattr(DevicePolicy, name, property(lambda self: True))
        monkeypatch.setattr(DevicePolicy, "has_tile_kernels", lambda self, dtype: True)
        policy = resolve("cpu")
    vae = make_distinct([4, 6], width, latent).to(policy.device, dtype)
    latents = torch.randn(1, latent, 40, generator=torch.Generator().manual_seed(0))
    recorded: list[Any] = []
    captured = DevicePolicy.captured

    def noted(self: DevicePolicy, step: Any, pool: Any = None) -> Any:
        recorded.append(step)
        return captured(self, step, pool)

    monkeypatch.setattr(DevicePolicy, "captured", noted)
    audio = codec.decode(vae, latents, policy, chunk_frames=12, compiled=True)
    assert len(recorded) == 1
    kept = wave_decoder._DECODERS[vae][1]
    assert isinstance(kept["tiled"], kernels.TiledDecoder)
    short = codec.decode(vae, latents[..., :5], policy, compiled=True)
    assert len(recorded) == 1, "a song of one chunk may have any length"
    again = codec.decode(vae, latents, policy, chunk_frames=14, compiled=True)
    assert len(recorded) == 2, "another length is another recording"
    expected = whole(vae, latents)
    atol = 3e-6 if dtype == torch.float32 else 0.02 * float(expected.abs().max())
    for made in (audio, again):
        torch.testing.assert_close(made, expected, atol=atol, rtol=0)
    torch.testing.assert_close(short, whole(vae, latents[..., :5]), atol=atol, rtol=0)
