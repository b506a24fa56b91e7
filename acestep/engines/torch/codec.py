"""Latents to audio and audio to latents: exact at any length, within each device's limits.

A convolutional VAE can be run in chunks without approximation when each chunk carries
enough neighbouring context (a halo as wide as the receptive field) and only its core is
kept. Inside a chunk, convolutions whose output would pass the device's limit are split
along time. Both give the values of the whole-signal run up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from acestep.engines.torch.wave_decoder import wave_decoder
from acestep.engines.torch.wave_encoder import wave_encoder
from acestep.gpu_config import is_short
from acestep.vae.windows import (
    MIN_CHUNK_FRAMES,
    PIECED_CHUNK_FRAMES,
    SHORT_CHUNK_FRAMES,
    chunk_frames_of,
    decoder_halo,
    encoded_length,
    encoder_halo,
    is_pieced,
    windows,
)

if TYPE_CHECKING:
    from diffusers.models import AutoencoderOobleck

    from acestep.device import DevicePolicy


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
    pieced = is_pieced(vae.decoder, policy) and not compiled
    core = chunk_frames or (
        PIECED_CHUNK_FRAMES if pieced else chunk_frames_of(vae.decoder, ratio, halo, policy)
    )
    # Chunks of one length are worth choosing kernels for, and recording. Half as long they
    # compute 2 % more, and need half the memory.
    even = compiled and policy.tunes
    if even and chunk_frames is None:
        core = max(MIN_CHUNK_FRAMES, core // 2)
    if policy.quantization and chunk_frames is None and not pieced:
        # Whoever holds weights in few bits is short of memory, and what is decoded counts too.
        core = max(MIN_CHUNK_FRAMES, core // 2)
    if chunk_frames is None and is_short(policy):
        core = min(core, SHORT_CHUNK_FRAMES)
    even = even and frames > core + 2 * halo
    run = wave_decoder(vae, policy, compiled, even)
    audio: torch.Tensor | None = None
    # One song after another: several at once spill the host's caches, and one fills a GPU.
    for item, song in enumerate(torch.split(latents, 1)):
        for window in windows(frames, core, halo, even=even):
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
    from diffusers.models.autoencoders.autoencoder_oobleck import (
        OobleckDiagonalGaussianDistribution,
    )

    ratio = math.prod(vae.config.downsampling_ratios)
    halo = encoder_halo(vae)
    samples = audio.shape[-1]
    frames = encoded_length(vae.encoder, samples)
    if frames < 1:
        raise ValueError(f"{samples} samples are too short: one latent frame takes {ratio}")
    core = chunk_frames or chunk_frames_of(vae.encoder, ratio, halo, policy)
    run = wave_encoder(vae, policy)
    songs: list[torch.Tensor] = []
    for signals in torch.split(audio, 1):
        parts: list[torch.Tensor] = []
        for window in windows(frames, core, halo):
            stop = samples if window.stop == frames else window.stop * ratio
            part = signals[..., window.start * ratio : stop].to(policy.device, vae.dtype)
            core_slice = slice(window.first - window.start, window.last - window.start)
            posterior = OobleckDiagonalGaussianDistribution(run(part)[..., core_slice])
            parts.append(torch.stack([posterior.mean, posterior.std]))
            policy.between_steps()
        songs.append(torch.cat(parts, dim=-1))
    moments = torch.cat(songs, dim=1)
    mean, std = moments[0], moments[1]
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32)
    return mean + std * noise.to(mean.device, mean.dtype)
