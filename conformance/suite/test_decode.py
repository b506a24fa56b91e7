"""Latents to audio and back: exact, and within what the device's convolutions allow."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.entrypoints import covers
from conformance.suite.support import Api, tone
from conformance.targets import Target
from conformance.tree import Absent

LIMIT = 65536
"""Longest dimension of a convolution's output on MPS."""

FRAMES = 36
"""More latent frames than one whole decode may have there: 36 * 1920 > 65536."""


class Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the longest output dimension of every convolution that is not transposed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.longest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        whole = func is torch.ops.aten.convolution.default and not args[6]
        if whole or func in (torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default):
            self.longest = max(self.longest, *out.shape)
        return out


@covers(
    "A1",
    "engines.torch.codec:decode",
    "handler:AceStepHandler.pipeline",
    "vae.windows:decoder_halo",
    "vae.windows:halo_of",
    "vae.windows:is_pieced",
    "vae.convolution:conv1d",
    "vae.convolution:padding_of",
    "device.choosing:resolve",
)
@torch.inference_mode()
def test_decode_is_exact_within_the_limit(api: Api, target: Target, handler: Any) -> None:
    if handler.pipeline is None:
        raise Absent("the limit is torch's; MLX's chunks are judged with its engine")
    vae = handler.pipeline.vae
    policy = dataclasses.replace(handler.policy, max_conv_output=LIMIT)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, vae.config.decoder_input_channels, FRAMES, generator=generator)
    decode = api.get("engines.torch.codec:decode")
    with Convolutions() as seen:
        audio = decode(vae, latents, policy)
    assert 0 < seen.longest <= LIMIT
    host = api.get("device:resolve")("cpu")
    with Convolutions() as seen:
        whole = decode(vae, latents, handler.policy, chunk_frames=16)
    bound = 1e-5 if vae.dtype == torch.float32 else 5e-2
    assert (audio - whole).abs().max() <= bound * max(1.0, float(whole.abs().max()))
    assert api.get("vae.windows:decoder_halo")(vae) > 0
    assert host.max_conv_output is None


@covers(
    "A1",
    "engines.torch.codec:encode",
    "vae.windows:encoded_length",
    "vae.windows:encoder_halo",
    "engines.torch.wave_encoder:WaveEncoder",
    "engines.torch.wave_layers:WaveLayers",
    "engines.torch.wave_layers:units_of",
    "engines.torch.wave_encoder:wave_encoder",
)
@torch.inference_mode()
def test_encode_is_exact_in_chunks(api: Api, target: Target, handler: Any) -> None:
    if handler.pipeline is None:
        raise Absent("MLX's chunks are judged with its engine")
    vae, encode = handler.pipeline.vae, api.get("engines.torch.codec:encode")
    api.get("engines.torch.wave_encoder:forget")(vae)
    audio = tone(1.5)[None]
    whole = encode(vae, audio, handler.policy)
    parts = encode(vae, audio, handler.policy, chunk_frames=9)
    assert whole.device.type == target.device
    bound = 1e-4 if vae.dtype == torch.float32 else 5e-2
    difference = (whole - parts).abs().max().float().cpu()
    assert difference <= bound * max(1.0, float(whole.abs().max()))
    assert api.get("vae.windows:encoder_halo")(vae) > 0


@covers("A1", "song.level:normalized")
def test_silence_and_noise_are_errors(api: Api, target: Target) -> None:
    """What is not music never becomes a file."""
    error = api.get("errors:GenerationError")
    for bad in (torch.zeros(1, 2, 8), torch.full((1, 2, 8), float("nan"))):
        with pytest.raises(error):
            api.get("song.level:normalized")(bad.to(target.device))
