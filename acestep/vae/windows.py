"""Windows of a song for a convolutional VAE: each with the context that makes it exact.

A convolutional VAE can be run in chunks without approximation when each chunk carries
enough neighbouring context (a halo as wide as the receptive field) and only its core is
kept. Numbers only: which engine runs the chunks does not matter here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import Conv1d, ConvTranspose1d, Module

from acestep.device.budget import chunk_frames
from acestep.vae.convolution import padding_of

if TYPE_CHECKING:
    from diffusers.models import AutoencoderOobleck

    from acestep.device import DevicePolicy

MIN_CHUNK_FRAMES = 160
MAX_CHUNK_FRAMES = 768
"""Bounds of a chunk's core in latent frames (25 a second): with the real VAE's halo of 9 on
each side, the smallest chunk computes 11 % more than it keeps."""

SHORT_CHUNK_FRAMES = 80
"""The same where memory is short: 22 % more, and a fifth of a GiB less."""

# Bytes of the widest activation of one chunk. On the host, larger chunks spill the cache and
# fault in fresh pages. A device that shares the host's memory gets the host's chunks, and
# with them the host's rounding.
HOST_CHUNK_BYTES = 24 * 2**20
ACCELERATOR_CHUNK_BYTES = 384 * 2**20

PIECE_BYTES = 8 * 2**20
"""The widest signal of a piece that the host takes through a block of the decoder at once: what
is made of it stays in the cache, and in memory that the process has already."""

PIECED_CHUNK_FRAMES = 384
"""A chunk's core where blocks go through it in pieces: only what lies between blocks is whole."""


def decoder_halo(vae: AutoencoderOobleck) -> int:
    """Latent frames on each side that a frame's audio depends on, from the layers."""
    return halo_of(vae.decoder)


def encoder_halo(vae: AutoencoderOobleck) -> int:
    """Latent frames of audio on each side that a latent depends on, from the layers."""
    ratio: int = math.prod(vae.config.downsampling_ratios)
    return math.ceil(halo_of(vae.encoder) / ratio)


def is_pieced(module: Module, policy: DevicePolicy) -> bool:
    """Whether a decoder's blocks are computed in pieces: on the host, in half precision, where a
    signal's channels lie side by side.

    Float32 is what all else is held to, and oneDNN's convolutions of other lengths round otherwise.
    """
    half = next(module.parameters()).element_size() < 4
    return half and policy.channels_last and not policy.is_accelerator


@dataclass(frozen=True)
class Window:
    """Frames to compute, `[start, stop)`, and the core of them to keep, `[first, last)`."""

    start: int
    first: int
    last: int
    stop: int


def windows(frames: int, core: int, halo: int, even: bool = False) -> Iterator[Window]:
    """Windows that cover all frames; `even` makes all as long as the longest, by computing
    more frames twice before the last."""
    size = core + 2 * halo
    if frames <= size:
        core, even = max(frames, 1), False
    first = 0
    while even and first < frames:
        start = min(max(first - halo, 0), frames - size)
        last = frames if start + size == frames else start + size - halo
        yield Window(start, first, last, start + size)
        first = last
    if even:
        return
    for first in range(0, frames, core):
        last = min(first + core, frames)
        yield Window(max(first - halo, 0), first, last, min(last + halo, frames))


def chunk_frames_of(module: Module, ratio: int, halo: int, policy: DevicePolicy) -> int:
    """How many frames fit the byte budget at the widest activation, halos included."""
    convolutions = [m for m in module.modules() if isinstance(m, Conv1d | ConvTranspose1d)]
    ends = (convolutions[0], convolutions[-1])
    # The full-rate end of the network is the one whose far side carries audio.
    full_rate = min(ends, key=lambda m: min(m.in_channels, m.out_channels))
    width = max(full_rate.in_channels, full_rate.out_channels)
    size = next(module.parameters()).element_size()
    budget = HOST_CHUNK_BYTES if policy.unified_memory else ACCELERATOR_CHUNK_BYTES
    frames = budget // (ratio * width * size) - 2 * halo
    best = max(MIN_CHUNK_FRAMES, min(frames, MAX_CHUNK_FRAMES))
    if not policy.on_mlx:
        return best
    # Small Macs have no room for the chunks that are quickest.
    return chunk_frames(policy.total_memory, best, halo, ratio * width * size)


def halo_of(module: Module) -> int:
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
        padding, reach = padding_of(convolution), dilation * (kernel - 1)
        if isinstance(convolution, ConvTranspose1d):
            halo = max((halo + reach - padding) // stride, (halo + padding - 1) // stride + 1)
        else:
            halo = halo * stride + max(padding, reach - padding)
    return halo


def encoded_length(encoder: Module, samples: int) -> int:
    for module in encoder.modules():
        if isinstance(module, Conv1d):
            reach = module.dilation[0] * (module.kernel_size[0] - 1) + 1
            samples = (samples + 2 * padding_of(module) - reach) // module.stride[0] + 1
    return samples
