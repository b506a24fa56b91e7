"""Trains the built-in checkpoint's VAE on synthesised sound."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from acestep.demo import material
from acestep.demo.steps import TrainingStep
from acestep.demo.synth import SAMPLE_RATE, Voices
from acestep.device import DevicePolicy

FRAMES = 24
"""Latent frames of a training segment, 0.96 s."""

_WINDOWS = (8192, 4096, 2048, 1024, 512, 256)
_MEL_WINDOW, _MEL_BANDS = 2048, 96
_RATE = 1.5e-3
# Share of the segments that are a piece's beginning.
_BEGINNINGS = 0.125
# Weight of the term that keeps the posterior from becoming a point, per latent value.
_VARIANCE = 2e-3
# Weight of the term that keeps each latent channel at zero mean and unit variance.
_SCALE = 0.5

Report = Callable[[dict[str, float]], None]


def train(
    vae: Any,
    policy: DevicePolicy,
    *,
    seconds: float,
    songs: int = 2048,
    batch: int = 16,
    seed: int = 1,
    decoder_only: bool = False,
    report: Report | None = None,
    report_every: int = 250,
) -> Any:
    """Train for a while; the learning rate falls to zero by its end.

    Args:
        vae: an `AutoencoderOobleck` in float32 on the policy's device.
        policy: device and autocast.
        seconds: wall-clock time.
        songs: pieces of ten seconds to cut segments from.
        batch: segments in a step.
        seed: of pieces, order and noise.
        decoder_only: leave the encoder, and with it every latent, as it is.
        report: told losses and speed every `report_every` steps.

    Returns:
        A state dict with the running average of the weights.
    """
    hear_the_middle(vae)
    voices = Voices(policy.device)
    pieces = material.songs(songs, 10.24, seed)
    audio = torch.cat([part.to(torch.float16) for part in material.sound(pieces, voices)])
    vae.train().requires_grad_(True)
    if decoder_only:
        vae.encoder.requires_grad_(False)
    step = TrainingStep(
        lambda segment, begins, noise: _losses(vae, segment, begins, noise, policy),
        [p for p in vae.parameters() if p.requires_grad],
        policy,
        betas=(0.8, 0.99),
        decay=1e-3,
        clip=5.0,
        forget=1e-3,
        window=10,
    )
    random = torch.Generator(policy.device).manual_seed(seed)
    shape = (batch, vae.config.decoder_input_channels, FRAMES)
    started, done = time.perf_counter(), 0.0
    while done < 1.0:
        rate = _RATE * min(1.0, (step.number + 1) / 100) * max(1.0 - done, 0.0) ** 0.7
        segment, begins = _segments(audio, batch, random)
        with policy.fixed_shapes():
            step(rate, segment, begins, torch.randn(shape, generator=random, device=policy.device))
        if step.number % report_every == 0 and report is not None:
            elapsed = time.perf_counter() - started
            report({"step": step.number, "elapsed": elapsed, **step.report()})
        if step.number % 10 == 0:
            policy.synchronize()
        done = (time.perf_counter() - started) / seconds
    step.settle()
    hear_the_middle(vae)
    return vae.state_dict()


def hear_the_middle(vae: Any) -> None:
    """Make the encoder deaf to how the channels differ; what it makes of one channel twice stays.

    Pieces always have the same stereo picture, which the decoder learns; latents, and with them
    codes and everything trained on either, need not know of it.
    """
    first = vae.encoder.conv1
    with torch.no_grad():
        middle = first.weight_v.mean(1, keepdim=True).expand_as(first.weight_v)
        if torch.equal(first.weight_v, middle):
            return
        scale = first.weight_g / first.weight_v.flatten(1).norm(dim=1)[:, None, None]
        first.weight_g.copy_(scale * middle.flatten(1).norm(dim=1)[:, None, None])
        first.weight_v.copy_(middle)


def _segments(
    audio: torch.Tensor, batch: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random stretches `[batch, 2, FRAMES * 1920]`, on the frames' grid, at various loudness,
    and which of them begin a piece, `[batch]`."""
    device = audio.device
    length = FRAMES * material.HOP
    rows = torch.randint(len(audio), (batch, 1, 1), generator=random, device=device)
    last = (audio.shape[-1] - length) // material.HOP
    starts = material.HOP * torch.randint(last, (batch, 1, 1), generator=random, device=device)
    drawn = torch.rand(batch, 1, 1, generator=random, device=device) < _BEGINNINGS
    starts = torch.where(drawn, 0, starts)
    channels = torch.arange(2, device=device)[None, :, None]
    index = starts + torch.arange(length, device=device)
    gain = 0.3 + 0.8 * torch.rand(batch, 1, 1, generator=random, device=device)
    return audio[rows, channels, index].float() * gain, starts.flatten() == 0


def _losses(
    vae: Any,
    audio: torch.Tensor,
    begins: torch.Tensor,
    noise: torch.Tensor,
    policy: DevicePolicy,
) -> dict[str, torch.Tensor]:
    with policy.autocast("vae"):
        posterior = vae.encode(audio.mean(1, keepdim=True).expand_as(audio)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        made = vae.decode(mean + std * noise).sample.float()
    _release(vae)
    audio, made = _compared(audio, begins), _compared(made, begins)
    centred = mean.transpose(0, 1).flatten(1)
    return {
        "spectrum": spectral_distance(_middle_side(made), _middle_side(audio)),
        "mel": 2 * _mel_distance(made.mean(1), audio.mean(1)),
        "wave": _wave_distance(made, audio),
        "variance": _VARIANCE * (std.square() - 2 * std.log() - 1).mean(),
        "scale": _SCALE * (centred.mean(1).square().mean() + (centred.std(1) - 1).square().mean()),
    }


def _compared(audio: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """What is compared of segments `[batch, 2, samples]`.

    At the ends of a segment the network sees padding that a song does not have, but at the
    beginning of a piece: there it must start as a song starts.
    """
    edge = 2 * material.HOP
    audio = audio[..., :-edge]
    unheard = torch.arange(audio.shape[-1], device=audio.device) < edge
    return audio.masked_fill(unheard & ~begins[:, None, None], 0.0)


def _release(vae: Any) -> None:
    """Let go of what weight normalisation keeps of a forward pass.

    It leaves each normalised weight, and with it a node for the gradient, at the module. A
    node that outlives its step belongs to the stream of that step, and the recording of a
    later one, which is made on another, would depend on it.
    """
    for module in vae.modules():
        if hasattr(module, "weight_g"):
            module.weight = module.weight.detach()


def spectral_distance(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Distance of magnitude spectra at six resolutions, for `[..., samples]` at 48 kHz.

    At each: the norm of the difference over the norm of the wanted spectrum, and the mean
    difference of logarithms (floor -70 dB).
    """
    total = made.new_zeros(())
    for size in _WINDOWS:
        window = torch.hann_window(size, device=made.device)
        spectra = [
            torch.stft(
                x.reshape(-1, x.shape[-1]), size, size // 4, window=window, return_complex=True
            ).abs()
            * (2 / size)
            for x in (made, wanted)
        ]
        difference = _norms(spectra[0] - spectra[1])
        relative = difference / (_norms(spectra[1]) + 1e-3)
        floor = 3e-4
        ratio = (spectra[0] + floor).log() - (spectra[1] + floor).log()
        total = total + relative.mean() + ratio.abs().mean()
    return total / len(_WINDOWS)


def _mel_distance(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean difference of logarithms of mel spectra (floor -70 dB), for `[batch, samples]`.

    Most bins of a spectrum are high ones; here the bands are as wide as the ear's, so that
    what tells one instrument from another counts.
    """
    filters = _mel_filters(made.device)
    window = torch.hann_window(_MEL_WINDOW, device=made.device)
    bands = [
        torch.stft(x, _MEL_WINDOW, _MEL_WINDOW // 4, window=window, return_complex=True)
        .abs()
        .mul(2 / _MEL_WINDOW)
        .square()
        .transpose(1, 2)
        @ filters
        for x in (made, wanted)
    ]
    return 0.5 * ((bands[0] + 1e-7).log() - (bands[1] + 1e-7).log()).abs().mean()


@lru_cache
def _mel_filters(device: torch.device) -> torch.Tensor:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        _MEL_WINDOW // 2 + 1, _MEL_BANDS, 20.0, 20000.0, SAMPLE_RATE, mel_scale="slaney"
    )
    return torch.from_numpy(filters).float().to(device)


def _norms(spectra: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(spectra.flatten(1), dim=1)
    return norms


def _wave_distance(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Difference of the waveforms over the wanted one, at the full rate and at lower ones.

    The lower the rate the more the low notes count; they are where pitch is heard in phase.
    """
    total = made.new_zeros(())
    for size in (1, 8, 32):
        low = [functional.avg_pool1d(x, size) if size > 1 else x for x in (made, wanted)]
        difference = (low[0] - low[1]).square().flatten(1).mean(1).sqrt()
        total = total + (difference / (low[1].square().flatten(1).mean(1).sqrt() + 1e-2)).mean()
    return total / 3


def _middle_side(audio: torch.Tensor) -> torch.Tensor:
    left, right = audio.unbind(1)
    return torch.stack([0.5 * (left + right), 0.5 * (left - right)], 1)


def fuse_activations(vae: Any) -> None:
    """Compile the VAE's periodic activation: eight passes over memory become one."""
    from diffusers.models.autoencoders.autoencoder_oobleck import Snake1d

    # One compilation for each number of channels, with gradients and without.
    torch._dynamo.config.recompile_limit = 64
    fused = torch.compile(_snake, dynamic=True)

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = fused(hidden_states, self.alpha, self.beta)
        return answer

    for module in vae.modules():
        if isinstance(module, Snake1d):
            module.forward = types.MethodType(forward, module)


def _snake(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    wave = torch.sin(alpha.exp() * wide).square()
    return (wide + (beta.exp() + 1e-9).reciprocal() * wave).to(x.dtype)
