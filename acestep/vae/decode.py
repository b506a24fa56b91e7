"""Latents to audio and audio to latents: exact at any length, within each device's limits.

A convolutional VAE can be run in chunks without approximation when each chunk carries
enough neighbouring context (a halo as wide as the receptive field) and only its core is
kept. Inside a chunk, convolutions whose output would pass the device's limit are split
along time. Both give the values of the whole-signal run up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Conv1d, ConvTranspose1d, Module

from acestep.engines.torch.wave_decoder import wave_decoder
from acestep.vae.convolution import conv1d

if TYPE_CHECKING:
    from diffusers.models import AutoencoderOobleck

    from acestep.device import DevicePolicy

MIN_CHUNK_FRAMES = 160
MAX_CHUNK_FRAMES = 768
"""Bounds of a chunk's core in latent frames (25 a second): with the real VAE's halo of 9 on
each side, the smallest chunk computes 11 % more than it keeps."""

# Bytes of the widest activation of one chunk. On the host, larger chunks spill the cache and
# fault in fresh pages. A device that shares the host's memory gets the host's chunks, and
# with them the host's rounding.
HOST_CHUNK_BYTES = 24 * 2**20
ACCELERATOR_CHUNK_BYTES = 384 * 2**20


def decode(
    vae: AutoencoderOobleck,
    latents: torch.Tensor,
    policy: DevicePolicy,
    *,
    chunk_frames: int | None = None,
    compiled: bool = False,
    on_chunk: Callable[[float], None] | None = None,
) -> torch.Tensor:
    """Turn latents into a waveform, equal to `vae.decode(latents).sample`.

    Args:
        vae: the autoencoder, on the device that is to do the work.
        latents: `[batch, channels, frames]`, 25 frames a second, on any device.
        policy: its limits hold for every convolution; memory is given back in between.
        chunk_frames: core length of a chunk; by default from the VAE's width.
        compiled: compile the decoder on first use.
        on_chunk: called after each chunk with the share done, 0 to 1.

    Returns:
        float32 audio on the host, `[batch, 2, frames * 1920]` at 48 kHz.
    """
    batch, _, frames = latents.shape
    ratio = math.prod(vae.config.downsampling_ratios)
    halo = decoder_halo(vae)
    core = chunk_frames or _chunk_frames(vae.decoder, ratio, halo, policy)
    # Chunks of one length are worth choosing kernels for, and recording. Half as long they
    # compute 2 % more, and need half the memory.
    even = compiled and policy.tunes
    if even and chunk_frames is None:
        core = max(MIN_CHUNK_FRAMES, core // 2)
    even = even and frames > core + 2 * halo
    run = wave_decoder(vae, policy, compiled, even)
    audio: torch.Tensor | None = None
    # One song after another: several at once spill the host's caches, and one fills a GPU.
    for item, song in enumerate(torch.split(latents, 1)):
        for window in _windows(frames, core, halo, even=even):
            part = song[..., window.start : window.stop].to(policy.device, vae.dtype)
            with policy.fixed_shapes() if even else nullcontext():
                wave = run(part)
            kept = wave[..., (window.first - window.start) * ratio :]
            if window.last != frames:
                kept = kept[..., : (window.last - window.first) * ratio]
            if audio is None:
                # An odd ratio makes the decoder's output a little shorter than frames * ratio.
                length = frames * ratio - ((window.stop - window.start) * ratio - wave.shape[-1])
                audio = policy.host_buffer(batch, wave.shape[1], length)
            start = window.first * ratio
            # Row by row, for only whole stretches of memory travel while the next chunk is
            # computed.
            rows = kept[0].to(torch.float32, memory_format=torch.contiguous_format)
            for row, target in zip(rows, audio[item], strict=True):
                target[start : start + len(row)].copy_(row, non_blocking=True)
            policy.between_steps()
            if on_chunk is not None:
                on_chunk((item + window.last / frames) / batch)
    if audio is None:
        raise ValueError(f"latents of shape {tuple(latents.shape)} have no frame to decode")
    policy.synchronize()
    return audio


def encode(
    vae: AutoencoderOobleck,
    audio: torch.Tensor,
    policy: DevicePolicy,
    *,
    generator: torch.Generator | None = None,
    chunk_frames: int | None = None,
) -> torch.Tensor:
    """Turn a waveform into latents, equal to `vae.encode(audio).latent_dist`.

    Args:
        vae: the autoencoder, on the device that is to do the work.
        audio: `[batch, 2, samples]` at 48 kHz, on any device.
        policy: as in `decode`.
        generator: a generator on the host to draw the posterior's sample from; without
            one the posterior's mean is returned.
        chunk_frames: core length of a chunk in latent frames.

    Returns:
        latents `[batch, channels, samples // 1920]` on the policy's device in the VAE's
        dtype. The noise is drawn on the host in float32, the same on every device.
    """
    ratio = math.prod(vae.config.downsampling_ratios)
    halo = encoder_halo(vae)
    samples = audio.shape[-1]
    frames = _encoded_length(vae.encoder, samples)
    if frames < 1:
        raise ValueError(f"{samples} samples are too short: one latent frame takes {ratio}")
    core = chunk_frames or _chunk_frames(vae.encoder, ratio, halo, policy)
    songs: list[torch.Tensor] = []
    for signals in torch.split(audio, 1):
        parts: list[torch.Tensor] = []
        for window in _windows(frames, core, halo):
            stop = samples if window.stop == frames else window.stop * ratio
            part = signals[..., window.start * ratio : stop].to(policy.device, vae.dtype)
            with split_convolutions(vae.encoder, policy.max_conv_output):
                posterior = vae.encode(part).latent_dist
            core_slice = slice(window.first - window.start, window.last - window.start)
            mean, std = posterior.mean[..., core_slice], posterior.std[..., core_slice]
            parts.append(torch.stack([mean, std]))
            policy.between_steps()
        songs.append(torch.cat(parts, dim=-1))
    moments = torch.cat(songs, dim=1)
    mean, std = moments[0], moments[1]
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32)
    return mean + std * noise.to(mean.device, mean.dtype)


def decoder_halo(vae: AutoencoderOobleck) -> int:
    """Latent frames on each side that a frame's audio depends on, from the layers."""
    return _halo(vae.decoder)


def encoder_halo(vae: AutoencoderOobleck) -> int:
    """Latent frames of audio on each side that a latent depends on, from the layers."""
    ratio: int = math.prod(vae.config.downsampling_ratios)
    return math.ceil(_halo(vae.encoder) / ratio)


@contextmanager
def split_convolutions(module: Module, limit: int | None) -> Iterator[None]:
    """Within the context no `Conv1d` of the module computes an output longer than `limit`.

    Longer outputs are computed piece by piece, each from exactly the input it needs, so
    the result is that of the whole convolution. The module is left as it was found.
    Transposed convolutions are not split: the limit does not apply to them.

    Args:
        module: any module; its `Conv1d` descendants are affected.
        limit: longest allowed output along time, or None for no limit.
    """
    convolutions = [m for m in module.modules() if isinstance(m, Conv1d)] if limit else []
    for convolution in convolutions:
        forward = _split_forward(convolution, limit or 0)
        convolution.forward = forward  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        for convolution in convolutions:
            del convolution.forward


def _split_forward(convolution: Conv1d, limit: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda signal: conv1d(
        signal,
        convolution.weight,
        convolution.bias,
        stride=convolution.stride[0],
        padding=_padding(convolution),
        dilation=convolution.dilation[0],
        groups=convolution.groups,
        limit=limit,
    )


@dataclass(frozen=True)
class _Window:
    """Frames to compute, `[start, stop)`, and the core of them to keep, `[first, last)`."""

    start: int
    first: int
    last: int
    stop: int


def _windows(frames: int, core: int, halo: int, even: bool = False) -> Iterator[_Window]:
    """Windows that cover all frames; `even` makes all as long as the longest, by computing
    more frames twice before the last."""
    size = core + 2 * halo
    if frames <= size:
        core, even = max(frames, 1), False
    first = 0
    while even and first < frames:
        start = min(max(first - halo, 0), frames - size)
        last = frames if start + size == frames else start + size - halo
        yield _Window(start, first, last, start + size)
        first = last
    if even:
        return
    for first in range(0, frames, core):
        last = min(first + core, frames)
        yield _Window(max(first - halo, 0), first, last, min(last + halo, frames))


def _chunk_frames(module: Module, ratio: int, halo: int, policy: DevicePolicy) -> int:
    """How many frames fit the byte budget at the widest activation, halos included."""
    convolutions = [m for m in module.modules() if isinstance(m, Conv1d | ConvTranspose1d)]
    ends = (convolutions[0], convolutions[-1])
    # The full-rate end of the network is the one whose far side carries audio.
    full_rate = min(ends, key=lambda m: min(m.in_channels, m.out_channels))
    width = max(full_rate.in_channels, full_rate.out_channels)
    size = next(module.parameters()).element_size()
    budget = HOST_CHUNK_BYTES if policy.unified_memory else ACCELERATOR_CHUNK_BYTES
    frames = budget // (ratio * width * size) - 2 * halo
    return max(MIN_CHUNK_FRAMES, min(frames, MAX_CHUNK_FRAMES))


def _halo(module: Module) -> int:
    """Receptive field to one side, in samples of the module's input.

    Walks the convolutions from the output back; the Oobleck networks register them in
    the order in which they run, and their skip connections reach no further.
    """
    halo = 0
    convolutions = [m for m in module.modules() if isinstance(m, Conv1d | ConvTranspose1d)]
    for convolution in reversed(convolutions):
        (kernel,), (stride,), (dilation,) = (
            convolution.kernel_size,
            convolution.stride,
            convolution.dilation,
        )
        padding, reach = _padding(convolution), dilation * (kernel - 1)
        if isinstance(convolution, ConvTranspose1d):
            halo = max((halo + reach - padding) // stride, (halo + padding - 1) // stride + 1)
        else:
            halo = halo * stride + max(padding, reach - padding)
    return halo


def _encoded_length(encoder: Module, samples: int) -> int:
    for module in encoder.modules():
        if isinstance(module, Conv1d):
            reach = module.dilation[0] * (module.kernel_size[0] - 1) + 1
            samples = (samples + 2 * _padding(module) - reach) // module.stride[0] + 1
    return samples


def _padding(convolution: Any) -> int:
    if isinstance(convolution.padding, str):
        raise TypeError(f"padding {convolution.padding!r} is given by name; a number is needed")
    return int(convolution.padding[0])
