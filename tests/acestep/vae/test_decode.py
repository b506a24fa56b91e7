"""Tests of exact decoding and encoding: values, limits, memory."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from acestep.corrections.weight_norm import without_copies
from acestep.device import MPS_MAX_CONV_OUTPUT, DevicePolicy
from acestep.engines.torch import codec, wave_decoder
from acestep.vae.convolution import conv1d
from acestep.vae.windows import decoder_halo, encoder_halo, halo_of, windows

RATIO = 1920


@pytest.fixture(scope="module")
def vae(make_vae: Callable[..., Any]) -> Any:
    """Thin, but with the real ratios and kernels."""
    return make_vae([2, 4, 4, 6, 10])


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class ConvolutionLengths(TorchDispatchMode):
    """Records the longest output dimension of every convolution that really runs."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: list[int] = []
        self.transposed: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            (self.transposed if args[6] else self.plain).append(max(result.shape))
        return result


@pytest.mark.parametrize("seconds", [0.5, 2, 5, 31.3])
def test_decode_equals_the_whole_decode(vae: Any, policy: DevicePolicy, seconds: float) -> None:
    frames = int(seconds * 25)
    batch = 2 if seconds < 5 else 1
    latents = torch.randn(batch, 4, frames, generator=torch.Generator().manual_seed(frames))
    whole = vae.decode(latents).sample
    for chunk in (None, 32) if seconds < 5 else (100,):
        audio = codec.decode(vae, latents, policy, chunk_frames=chunk)
        assert audio.shape == (batch, 2, frames * RATIO)
        torch.testing.assert_close(audio, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [1920, 24000, 96011, 480000 + 77])
def test_encode_equals_the_whole_encode(vae: Any, policy: DevicePolicy, samples: int) -> None:
    audio = torch.rand(1, 2, samples, generator=torch.Generator().manual_seed(samples)) - 0.5
    whole = vae.encode(audio).latent_dist
    for chunk in (None, 33):
        latents = codec.encode(vae, audio, policy, chunk_frames=chunk)
        torch.testing.assert_close(latents, whole.mean, atol=1e-5, rtol=0)
    sampled = codec.encode(vae, audio, policy, generator=policy.generator(3))
    expected = whole.sample(generator=policy.generator(3))
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratios", [[2, 4, 6], [3, 5]])
def test_blocks_in_pieces(make_vae: Callable[..., Any], ratios: list[int]) -> None:
    """Of the fewest samples; and transposed convolutions as plain ones, with odd strides too."""
    vae = make_vae(ratios)
    latents = torch.randn(1, 4, 90, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents).sample
    run = wave_decoder.WaveDecoder(without_copies(vae.decoder), piece_bytes=1)
    with ConvolutionLengths() as seen:
        made = run(latents)
    assert max(seen.plain) < whole.shape[-1] / 2
    torch.testing.assert_close(made, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_host_takes_pieces_in_half_precision(
    make_vae: Callable[..., Any],
    policy: DevicePolicy,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wave_decoder, "PIECE_BYTES", 1)
    vae = make_vae([2, 3, 4])
    latents = torch.randn(1, 4, 150, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents).sample
    with ConvolutionLengths() as seen:
        made = codec.decode(vae.to(dtype), latents, policy)
    assert (max(seen.plain) < whole.shape[-1] / 2) == (dtype is torch.bfloat16)
    assert (made - whole).norm() < whole.norm() * (0.03 if dtype is torch.bfloat16 else 1e-5)


def test_songs_of_a_batch_are_as_alone(vae: Any, policy: DevicePolicy) -> None:
    latents = torch.randn(3, 4, 70, generator=torch.Generator().manual_seed(0))
    shares: list[float] = []
    audio = codec.decode(vae, latents, policy, chunk_frames=40, on_chunk=shares.append)
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (6, 1.0)
    torch.testing.assert_close(audio, vae.decode(latents).sample, atol=1e-5, rtol=0)
    again = codec.encode(vae, audio, policy, chunk_frames=40)
    torch.testing.assert_close(again, vae.encode(audio).latent_dist.mean, atol=1e-5, rtol=0)


@given(frames=st.integers(1, 400), core=st.integers(1, 60), halo=st.integers(0, 12))
def test_even_windows_cover_every_frame_once(frames: int, core: int, halo: int) -> None:
    covered = list(windows(frames, core, halo, even=True))
    size = core + 2 * halo
    assert [w.first for w in covered] == [0, *(w.last for w in covered[:-1])]
    assert covered[-1].last == frames
    for window in covered:
        assert window.stop - window.start == min(size, frames)
        assert window.start <= max(window.first - halo, 0)
        assert window.stop >= min(window.last + halo, frames)
        assert window.first < window.last


@pytest.mark.parametrize("frames", [40, 150])
def test_chunks_of_one_length_where_kernels_are_tried(
    vae: Any, policy: DevicePolicy, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA decodes when compiled: the host stands in, and nothing is compiled."""
    monkeypatch.setattr(DevicePolicy, "tunes", property(lambda self: True))
    monkeypatch.setattr(wave_decoder, "_compiled", lambda function: function)
    latents = torch.randn(1, 4, frames, generator=torch.Generator().manual_seed(0))
    lengths: list[int] = []
    tried: list[bool] = []
    call = wave_decoder.WaveDecoder.__call__

    def noted(self: Any, part: torch.Tensor) -> torch.Tensor:
        lengths.append(part.shape[-1])
        tried.append(torch.backends.cudnn.benchmark)
        return call(self, part)

    monkeypatch.setattr(wave_decoder.WaveDecoder, "__call__", noted)
    audio = codec.decode(vae, latents, policy, chunk_frames=40, compiled=True)
    torch.testing.assert_close(audio, vae.decode(latents).sample, atol=1e-5, rtol=0)
    size = min(frames, 40 + 2 * decoder_halo(vae))
    assert set(lengths) == {size}
    assert set(tried) == {frames > 40}


def test_no_convolution_passes_the_limit(vae: Any, policy: DevicePolicy) -> None:
    limited = dataclasses.replace(policy, max_conv_output=MPS_MAX_CONV_OUTPUT)
    latents = torch.randn(1, 4, 125, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents).sample
    with ConvolutionLengths() as seen:
        audio = codec.decode(vae, latents, limited, chunk_frames=125)
    # As few pieces as the limit allows, all of one length.
    pieces = -(-125 * RATIO // MPS_MAX_CONV_OUTPUT)
    assert max(seen.plain) == 125 * RATIO // pieces <= MPS_MAX_CONV_OUTPUT
    assert max(seen.transposed) == 125 * RATIO, "transposed convolutions are exempt"
    torch.testing.assert_close(audio, whole, atol=1e-5, rtol=0)
    with ConvolutionLengths() as seen:
        latents_again = codec.encode(vae, whole, limited, chunk_frames=125)
    assert max(seen.plain) == 125 * RATIO // pieces
    torch.testing.assert_close(latents_again, vae.encode(whole).latent_dist.mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pieces_keep_the_layout(channels_last: bool) -> None:
    """`[batch, channels, time]`, and images of one row with channels last."""
    generator = torch.Generator().manual_seed(0)
    signal, weight = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 99), (3, 4, 5)))
    expected = torch.nn.functional.conv1d(signal, weight, stride=2, padding=6, dilation=3)
    if channels_last:
        signal, weight, expected = (
            x[:, :, None].contiguous(memory_format=torch.channels_last)
            for x in (signal, weight, expected)
        )
    made = conv1d(signal, weight, None, stride=2, padding=6, dilation=3, limit=20)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert made.stride() == expected.stride()


def test_without_the_limit_the_same_decode_passes_it(vae: Any, policy: DevicePolicy) -> None:
    with ConvolutionLengths() as seen:
        codec.decode(vae, torch.randn(1, 4, 125), policy, chunk_frames=125)
    assert max(seen.plain) == 125 * RATIO


@pytest.mark.parametrize("ratios", [[2, 4, 4, 6, 10], [2, 3], [5, 2, 4], [4, 8]])
def test_halos_are_the_receptive_field(make_vae: Callable[..., Any], ratios: list[int]) -> None:
    """Perturb one latent and one sample, and see how far the change reaches."""
    vae = make_vae(ratios).double()
    ratio = torch.tensor(ratios).prod().item()
    latents = torch.randn(1, 4, 61, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    changed = latents.clone()
    changed[..., 30] += 1.0
    touched = (vae.decode(latents).sample != vae.decode(changed).sample).any(dim=1)[0].nonzero()
    first, last = touched.min().item() // ratio, touched.max().item() // ratio
    reach = max(30 - first, last - 30)
    assert reach <= decoder_halo(vae) <= reach + 1

    audio = torch.randn(1, 2, 61 * ratio, dtype=torch.float64)
    changed = audio.clone()
    changed[..., 30 * ratio] += 1.0
    changed[..., 31 * ratio - 1] += 1.0
    posterior, other = vae.encode(audio).latent_dist, vae.encode(changed).latent_dist
    touched = (posterior.mean != other.mean).any(dim=1)[0].nonzero()
    reach = max(30 - touched.min().item(), touched.max().item() - 30)
    assert reach <= encoder_halo(vae) <= reach + 1


def test_a_smaller_halo_is_not_exact(
    vae: Any, policy: DevicePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted defect: one frame less than the receptive field shows."""
    latents = torch.randn(1, 4, 120, generator=torch.Generator().manual_seed(2))
    whole = vae.decode(latents).sample
    right = decoder_halo(vae)
    monkeypatch.setattr(codec, "decoder_halo", lambda vae: right - 2)
    audio = codec.decode(vae, latents, policy, chunk_frames=40)
    assert (audio - whole).abs().max() > 1e-5


def test_odd_ratios_keep_their_length(make_vae: Callable[..., Any], policy: DevicePolicy) -> None:
    vae = make_vae([2, 3, 5])
    latents = torch.randn(1, 4, 200, generator=torch.Generator().manual_seed(3))
    whole = vae.decode(latents).sample
    audio = codec.decode(vae, latents, policy, chunk_frames=50)
    torch.testing.assert_close(audio, whole, atol=1e-5, rtol=0)


@settings(max_examples=25)
@given(
    length=st.integers(30, 400),
    limit=st.integers(1, 120),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 6),
)
def test_any_convolution_splits_exactly(
    length: int, limit: int, kernel: int, stride: int, dilation: int, padding: int
) -> None:
    assume(length + 2 * padding >= dilation * (kernel - 1) + 1)
    convolution = nn.Conv1d(
        2, 3, kernel, stride=stride, dilation=dilation, padding=padding
    ).double()
    signal = torch.randn(2, 2, length, dtype=torch.float64)
    whole = convolution(signal)
    with ConvolutionLengths() as seen:
        split = conv1d(
            signal,
            convolution.weight,
            convolution.bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            limit=limit,
        )
    torch.testing.assert_close(split, whole, atol=1e-12, rtol=0)
    assert max(seen.plain) <= max(limit, 3)  # three channels


def test_named_padding_is_refused() -> None:
    with pytest.raises(TypeError, match="'same' is given by name"):
        halo_of(nn.Conv1d(1, 1, 3, padding="same"))


def test_nothing_to_work_on_is_an_error(vae: Any, policy: DevicePolicy) -> None:
    with pytest.raises(ValueError, match="no frame to decode"):
        codec.decode(vae, torch.zeros(1, 4, 0), policy)
    with pytest.raises(ValueError, match="too short"):
        codec.encode(vae, torch.zeros(1, 2, 100), policy)


def test_progress_ends_at_one(vae: Any, policy: DevicePolicy) -> None:
    seen: list[float] = []
    codec.decode(vae, torch.randn(1, 4, 150), policy, chunk_frames=32, on_chunk=seen.append)
    assert len(seen) == 5
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


MEMORY_PROGRAM = """
import os, resource, sys, torch
from pathlib import Path
from acestep.checkpoint.components import load_vae
from acestep.device import resolve
from acestep.engines.torch import codec
torch.set_grad_enabled(False)
torch.set_num_threads(1)
policy = resolve("cpu")
vae = load_vae(Path(sys.argv[1]) / "vae", policy)
for seconds in map(int, sys.argv[2:]):
    # Each in a process of its own, which has imported and loaded already.
    if os.fork() == 0:
        latents = torch.randn(1, vae.config.decoder_input_channels, 25 * seconds)
        audio = codec.decode(vae, latents, policy, chunk_frames=64)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(peak, audio.numel() * 4 / 2**20, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource is a Unix module")
def test_memory_grows_by_the_result_alone(trained: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, str(trained), "7", "14"],
        capture_output=True,
        text=True,
        check=True,
        # A fork has none of its parent's threads, and would wait for them.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (short, short_result), (long, long_result) = (
        map(float, line.split()) for line in run.stdout.splitlines()
    )
    assert long <= 1.15 * (short + long_result - short_result)
