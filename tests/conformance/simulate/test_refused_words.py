"""The words that a Mac uses where the host would use others, each with its public source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

pytestmark = [
    pytest.mark.usefixtures("sim"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:index_reduce:UserWarning"),
]
PYTORCH = "https://github.com/pytorch/pytorch/issues/"
SOURCES = "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/"


def on(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*shape, dtype=dtype, device="mps")


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return on(1, 3, 8, 8, dtype=dtype)


def weights(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(4, 3, 3, 3, dtype=dtype)


def place() -> torch.Tensor:
    return torch.tensor([1], device="mps")


def written() -> object:
    host = torch.arange(9)
    host[place()] = 3
    return host


def complex_matrix() -> torch.Tensor:
    return torch.eye(3, dtype=torch.complex64, device="mps")


def parts(device: str) -> list[torch.Tensor]:
    return [torch.ones(2, device=device), torch.ones(3, device=device)]


TYPES = "Input type ({}) and {} type ({}) should be the same"
INDICES = "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
NESTED = "NestedTensorImpl storage must be either CUDA, CPU, XPU or privateuseone but got mps:0"
POOL = "Adaptive pool MPS: {} sizes must be divisible by {} sizes."

WORDS: dict[str, tuple[str, Callable[[], Any], str]] = {
    "weights on the host": (
        "https://github.com/pytorch/ignite/issues/2977",
        lambda: functional.conv2d(image(), weights()),
        TYPES.format("MPSFloatType", "weight", "torch.FloatTensor"),
    ),
    "signal on the host": (
        "https://github.com/pkuliyi2015/sd-webui-stablesr/issues/55",
        lambda: functional.conv2d(image().cpu(), weights().to("mps")),
        "slow_conv2d_forward_mps: input(device='cpu') and weight(device=mps:0')  must be on the",
    ),
    "transposed": (
        "https://github.com/Mikubill/sd-webui-controlnet/issues/1649",
        lambda: functional.conv_transpose2d(image(), torch.ones(3, 1, 2, 2)),
        TYPES.format("MPSFloatType", "weight", "torch.FloatTensor"),
    ),
    "bfloat16 weights on the host": (
        "https://github.com/loscrossos/core_framepackstudio/issues/4",
        lambda: functional.conv2d(image(torch.bfloat16), weights(torch.bfloat16)),
        TYPES.format("MPSBFloat16Type", "weight", "CPUBFloat16Type"),
    ),
    "half weights": (
        "https://github.com/Mikubill/sd-webui-controlnet/issues/1267",
        lambda: functional.conv2d(image(), weights().to("mps").half()),
        TYPES.format("MPSFloatType", "weight", "MPSHalfType"),
    ),
    "half bias": (
        "https://github.com/gregcmartin/HunyuanVideo_MLX/issues/5",
        lambda: functional.conv2d(image(), weights().to("mps"), on(4).half()),
        TYPES.format("float", "bias", "c10::Half"),
    ),
    "bias on the host": (
        SOURCES + "Convolution.cpp",
        lambda: functional.conv2d(image(), weights().to("mps"), torch.ones(4)),
        TYPES.format("MPSFloatType", "bias", "torch.FloatTensor"),
    ),
    "bytes": (
        PYTORCH + "88978",
        lambda: functional.conv2d(image(torch.uint8), weights().to("mps")),
        TYPES.format("MPSByteType", "weight", "MPSFloatType"),
    ),
    "indexed": (
        "https://discuss.pytorch.org/t/154141",
        lambda: torch.arange(9)[place()],
        INDICES,
    ),
    "indexed by a mask": (
        "https://discuss.pytorch.org/t/154141",
        lambda: torch.arange(2)[torch.tensor([True, False], device="mps")],
        INDICES,
    ),
    "written by index": (PYTORCH + "81051", written, INDICES),
    "pooled up": (
        PYTORCH + "143864",
        lambda: functional.adaptive_avg_pool2d(on(1, 1, 4, 4), 7),
        POOL.format("output", "input"),
    ),
    "pooled down": (
        PYTORCH + "96056",
        lambda: functional.adaptive_avg_pool2d(on(1, 4, 26, 39), 2),
        POOL.format("input", "output"),
    ),
    "pooled both ways": (
        SOURCES + "mps/operations/AdaptivePooling.mm",
        lambda: functional.adaptive_avg_pool2d(on(1, 1, 4, 4), (8, 2)),
        "Adaptive pool MPS: Input height and width must both be greater than",
    ),
    "complex inverse": (
        SOURCES + "mps/operations/LinearAlgebra.mm",
        lambda: torch.linalg.inv(complex_matrix()),
        "linalg_inv: not supported for complex types yet!",
    ),
    "complex inverse of a factor": (
        SOURCES + "mps/operations/LinearAlgebra.mm",
        lambda: torch.cholesky_inverse(complex_matrix()),
        "cholesky_inverse: MPS only supports float type!",
    ),
    "reduced at indices": (
        "https://github.com/pytorch/pytorch/pull/174936",
        lambda: on(3, dtype=torch.int64).index_reduce(0, place(), on(1, dtype=torch.int64), "amax"),
        "index_reduce for MPS does not support torch.long dtype",
    ),
    "projections": (
        SOURCES + "mps/operations/RnnOps.mm",
        lambda: torch.nn.LSTM(4, 6, proj_size=2, device="mps")(on(3, 1, 4)),
        "LSTM with projections is not currently supported with MPS.",
    ),
    "nested": (
        PYTORCH + "127743",
        lambda: torch.nested.as_nested_tensor(parts("mps")),
        NESTED,
    ),
    "nested there": (
        PYTORCH + "127743",
        lambda: torch.nested.nested_tensor(parts("cpu"), device="mps"),
        NESTED,
    ),
    "nested and moved": (
        PYTORCH + "127743",
        lambda: torch.nested.nested_tensor(parts("cpu")).to("mps"),
        NESTED,
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_says_what_a_mac_says(name: str) -> None:
    source, use, words = WORDS[name]
    assert source.startswith("https://")
    with pytest.raises(RuntimeError) as caught:
        use()
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    "use",
    [
        lambda: on(3, dtype=torch.int32).index_reduce(0, place(), on(1, dtype=torch.int32), "amax"),
        lambda: functional.adaptive_avg_pool2d(on(1, 1, 4, 4), (8, 4)),
        lambda: functional.adaptive_avg_pool2d(on(1, 1, 6, 4), (3, 1)),
        lambda: torch.linalg.inv(torch.eye(2, device="mps")),
        lambda: on(3)[torch.tensor([1])],
        lambda: torch.nn.LSTM(4, 6, device="mps")(on(3, 1, 4))[0],
    ],
)
def test_and_what_lies_beside_it_runs(use: Callable[[], Any]) -> None:
    assert use().is_mps
