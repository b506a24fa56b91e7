"""The Oobleck VAE's two networks, with time before channels as MLX has it.

Where a device has no quick kernel of a kind, the same sums are taken as products: a convolution
whose stride is half its kernel is two products over stretches of the signal, and the way back is
one, whose halves are added with an offset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

Waves = Callable[[mx.array, mx.array, mx.array], mx.array]
"""The activation: of a signal, its rates and sizes."""


def snaked(signal: mx.array, rate: mx.array, size: mx.array) -> mx.array:
    """`x + size * sin(rate * x) ** 2`."""
    wave = mx.sin(rate * signal)
    return signal + size * wave * wave


@dataclass(frozen=True)
class Ways:
    """How a device is best given the work.

    Attributes:
        by_taps: a convolution of a kernel as so many products; else in one call.
        snake: the activation.
    """

    by_taps: bool = False
    snake: Waves = snaked


class Snake(nn.Module):
    """The activation, with its numbers as they are needed."""

    def __init__(self, channels: int, ways: Ways) -> None:
        super().__init__()
        self.rate, self.size = mx.ones((channels,)), mx.ones((channels,))
        self.activation = ways.snake

    def __call__(self, signal: mx.array) -> mx.array:
        """`[1, time, channels]` to the same."""
        return self.activation(signal, self.rate, self.size)


class Conv(nn.Module):
    """A convolution that keeps a signal's length.

    Args:
        inputs, outputs: channels.
        kernel: odd.
        ways: see there.
        dilation: distance of the kernel's taps.
        bias: whether there is one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        ways: Ways,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, kernel, inputs))
        if bias:
            self.bias = mx.zeros((outputs,))
        self.kernel, self.dilation, self.by_taps = kernel, dilation, ways.by_taps

    def __call__(self, signal: mx.array) -> mx.array:
        """`[1, time, inputs]` to `[1, time, outputs]`."""
        reach = self.dilation * (self.kernel // 2)
        if self.kernel == 1:
            made = signal @ self.weight[:, 0].T
        elif self.by_taps:
            length = signal.shape[1]
            padded = mx.pad(signal, [(0, 0), (reach, reach), (0, 0)])[0]
            made = padded[:length] @ self.weight[:, 0].T
            for tap in range(1, self.kernel):
                start = tap * self.dilation
                rows = padded[start : start + length]
                made = mx.addmm(made, rows, self.weight[:, tap].T)
            made = made[None]
        else:
            made = mx.conv1d(signal, self.weight, padding=reach, dilation=self.dilation)
        return made + self.bias if "bias" in self else made


class Shrink(nn.Module):
    """A convolution with a kernel of two strides, padded by half a stride, rounded up."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, 2 * stride, inputs))
        self.bias = mx.zeros((outputs,))
        self.stride = stride

    def __call__(self, signal: mx.array) -> mx.array:
        """`[1, time, inputs]` to `[1, time / stride, outputs]`."""
        stride, pad = self.stride, -(-self.stride // 2)
        length = (signal.shape[1] + 2 * pad - 2 * stride) // stride + 1
        needed = (length + 1) * stride
        padded = mx.pad(signal, [(0, 0), (pad, pad), (0, 0)])[:, :needed]
        pieces = mx.unflatten(padded, 1, (length + 1, stride)).flatten(2)
        first, second = self.weight[:, :stride].flatten(1), self.weight[:, stride:].flatten(1)
        return pieces[:, :-1] @ first.T + pieces[:, 1:] @ second.T + self.bias


class Widen(nn.Module):
    """The way back: a transposed convolution of the same kernel, stride and padding."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.weight = mx.zeros((2 * stride * outputs, inputs))
        self.bias = mx.zeros((outputs,))
        self.stride = stride

    def __call__(self, signal: mx.array) -> mx.array:
        """`[1, time, inputs]` to `[1, time * stride, outputs]`, one less for an odd stride."""
        stride, pad = self.stride, -(-self.stride // 2)
        spread = mx.unflatten(signal @ self.weight.T, 2, (2, -1))
        early = mx.pad(spread[:, :, 0], [(0, 0), (0, 1), (0, 0)])
        late = mx.pad(spread[:, :, 1], [(0, 0), (1, 0), (0, 0)])
        made = mx.unflatten(early + late, 2, (stride, -1)).flatten(1, 2)
        return made[:, pad : made.shape[1] - pad] + self.bias


class Unit(nn.Module):
    """A residual unit: two convolutions beside the signal."""

    def __init__(self, channels: int, dilation: int, ways: Ways) -> None:
        super().__init__()
        self.snake1 = Snake(channels, ways)
        self.conv1 = Conv(channels, channels, 7, ways, dilation)
        self.snake2 = Snake(channels, ways)
        self.conv2 = Conv(channels, channels, 1, ways)

    def __call__(self, signal: mx.array) -> mx.array:
        """`[1, time, channels]` to the same."""
        made: mx.array = signal + self.conv2(self.snake2(self.conv1(self.snake1(signal))))
        return made


class EncoderBlock(nn.Module):
    """Three units, and fewer samples after them."""

    def __init__(self, inputs: int, outputs: int, stride: int, ways: Ways) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = _units(inputs, ways)
        self.snake1 = Snake(inputs, ways)
        self.conv1 = Shrink(inputs, outputs, stride)

    def __call__(self, signal: mx.array) -> mx.array:
        """`[1, time, inputs]` to `[1, time / stride, outputs]`."""
        signal = self.res_unit3(self.res_unit2(self.res_unit1(signal)))
        made: mx.array = self.conv1(self.snake1(signal))
        return made


class DecoderBlock(nn.Module):
    """More samples, and three units after them."""

    def __init__(self, inputs: int, outputs: int, stride: int, ways: Ways) -> None:
        super().__init__()
        self.snake1 = Snake(inputs, ways)
        self.conv_t1 = Widen(inputs, outputs, stride)
        self.res_unit1, self.res_unit2, self.res_unit3 = _units(outputs, ways)

    def __call__(self, signal: mx.array) -> mx.array:
        """`[1, time, inputs]` to `[1, time * stride, outputs]`."""
        signal = self.conv_t1(self.snake1(signal))
        made: mx.array = self.res_unit3(self.res_unit2(self.res_unit1(signal)))
        return made


def _units(channels: int, ways: Ways) -> tuple[Unit, Unit, Unit]:
    return Unit(channels, 1, ways), Unit(channels, 3, ways), Unit(channels, 9, ways)


class Network(nn.Module):
    """A convolution, blocks that change the rate, and a convolution.

    Args:
        blocks: from the input on.
        ends: channels of what comes in and of what goes out.
        widths: channels after the first convolution, and before the last.
        last_kernel: of the last convolution.
        last_bias: whether it has one.
        ways: see there.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        ends: tuple[int, int],
        widths: tuple[int, int],
        last_kernel: int,
        last_bias: bool,
        ways: Ways,
    ) -> None:
        super().__init__()
        self.conv1 = Conv(ends[0], widths[0], 7, ways)
        self.block = list(blocks)
        self.snake1 = Snake(widths[1], ways)
        self.conv2 = Conv(widths[1], ends[1], last_kernel, ways, bias=last_bias)

    def __call__(self, signal: mx.array) -> mx.array:
        """`[1, time, channels in]` to `[1, other time, channels out]`."""
        signal = self.conv1(signal)
        for block in self.block:
            signal = block(signal)
        made: mx.array = self.conv2(self.snake1(signal))
        return made


@dataclass(frozen=True)
class VaeShape:
    """Widths of a VAE, in the terms of its config."""

    encoder_hidden_size: int
    downsampling_ratios: Sequence[int]
    channel_multiples: Sequence[int]
    decoder_channels: int
    decoder_input_channels: int
    audio_channels: int


class Vae(nn.Module):
    """Audio to the moments of latents, and latents to audio."""

    def __init__(self, shape: VaeShape, ways: Ways) -> None:
        super().__init__()
        multiples = [1, *shape.channel_multiples]
        ratios = list(shape.downsampling_ratios)
        inner = [shape.encoder_hidden_size * multiple for multiple in multiples]
        outer = [shape.decoder_channels * multiple for multiple in multiples]
        down = [
            EncoderBlock(inner[at], inner[at + 1], ratio, ways) for at, ratio in enumerate(ratios)
        ]
        up = [
            DecoderBlock(outer[at + 1], outer[at], ratios[at], ways)
            for at in reversed(range(len(ratios)))
        ]
        moments, audio = shape.encoder_hidden_size, shape.audio_channels
        self.encoder = Network(down, (audio, moments), (inner[0], inner[-1]), 3, True, ways)
        ends = shape.decoder_input_channels, audio
        self.decoder = Network(up, ends, (outer[-1], outer[0]), 7, False, ways)
