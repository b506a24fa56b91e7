"""Latents to audio and audio to latents, in chunks that change nothing of either.

Each chunk carries as much of its neighbours as the network hears; it is computed, taken to the
host and freed before the next one begins, so that memory does not know how long a song is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import torch

from acestep.device import DevicePolicy
from acestep.engines.mlx.arrays import from_torch, to_torch
from acestep.engines.mlx.wave import Vae
from acestep.vae.windows import (
    chunk_frames_of,
    decoder_halo,
    encoded_length,
    encoder_halo,
    windows,
)


class Codec:
    """Runs a VAE over songs of any length.

    Args:
        vae: the networks with their weights.
        described: a `diffusers.AutoencoderOobleck` of the same shape, which may be empty.
        policy: its limits hold for a chunk.
        dtype: of the weights.
    """

    def __init__(self, vae: Vae, described: Any, policy: DevicePolicy, dtype: mx.Dtype) -> None:
        self.vae, self.dtype = vae, dtype
        self.ratio = math.prod(described.config.downsampling_ratios)
        self.sample_rate = int(described.config.sampling_rate)
        self.channels = int(described.config.decoder_input_channels)
        self.halo, self.encoder_halo = decoder_halo(described), encoder_halo(described)
        self._encoder = described.encoder
        self.core = chunk_frames_of(described.decoder, self.ratio, self.halo, policy)
        self.encoder_core = chunk_frames_of(
            described.encoder, self.ratio, self.encoder_halo, policy
        )

    def decode(
        self, latents: mx.array, report: Callable[[float], None] | None = None
    ) -> torch.Tensor:
        """Latents `[batch, frames, channels]` to audio `[batch, 2, samples]` on the host.

        Args:
            latents: on any number of frames.
            report: told the share that is done, after each chunk.
        """
        batch, frames, _ = latents.shape
        if not frames:
            raise ValueError(f"latents of shape {latents.shape} have no frame to decode")
        audio: torch.Tensor | None = None
        for item in range(batch):
            for window in windows(frames, self.core, self.halo):
                part = latents[item : item + 1, window.start : window.stop].astype(self.dtype)
                wave = to_torch(self.vae.decoder(part)[0])
                kept = wave[(window.first - window.start) * self.ratio :]
                if window.last != frames:
                    kept = kept[: (window.last - window.first) * self.ratio]
                if audio is None:
                    # An odd ratio makes the output a little shorter than frames * ratio.
                    length = (frames - window.stop + window.start) * self.ratio + len(wave)
                    audio = torch.empty(batch, wave.shape[1], length)
                start = window.first * self.ratio
                audio[item, :, start : start + len(kept)] = kept.mT
                if report is not None:
                    report((item + window.last / frames) / batch)
        assert audio is not None
        return audio

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio `[2, samples]` to the mean of its latents, `[frames, channels]`, on the host."""
        samples = audio.shape[-1]
        frames = encoded_length(self._encoder, samples)
        if frames < 1:
            raise ValueError(
                f"{samples} samples are too short: one latent frame takes {self.ratio}"
            )
        parts: list[torch.Tensor] = []
        for window in windows(frames, self.encoder_core, self.encoder_halo):
            stop = samples if window.stop == frames else window.stop * self.ratio
            part = from_torch(audio[:, window.start * self.ratio : stop].mT)[None]
            moments = self.vae.encoder(part.astype(self.dtype))[0]
            kept = moments[window.first - window.start : window.last - window.start]
            parts.append(to_torch(kept[:, : self.channels]))
        return torch.cat(parts)
