"""What people report of Macs and PyTorch's authors answer: half of it works, and works here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.utils import rnn
from torch.utils.data import DataLoader

pytestmark = [
    pytest.mark.usefixtures("sim"),
    pytest.mark.filterwarnings("ignore:index_reduce:UserWarning"),
]
PYTORCH = "https://github.com/pytorch/pytorch/issues/"
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype"


def on(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*shape, dtype=dtype, device="mps")


def places(*values: int) -> torch.Tensor:
    return torch.tensor(values, device="mps")


def packed() -> torch.Tensor:
    sequences = rnn.pack_padded_sequence(on(3, 2, 4), torch.tensor([3, 2]))
    layer = torch.nn.LSTM(4, 5, 2, bidirectional=True, device="mps")
    made: torch.Tensor = layer(sequences)[0].data
    return made


def decomposed() -> torch.Tensor:
    q, r = torch.linalg.qr(torch.eye(3, device="mps"))
    return q @ r


def loaded() -> torch.Tensor:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        list(DataLoader([1.0, 2.0], pin_memory=True))  # type: ignore[arg-type]
    assert any("set as true but not supported on MPS" in str(one.message) for one in said)
    return on(1)


WORKS: dict[str, Callable[[], Any]] = {
    PYTORCH + "96153": lambda: torch.baddbmm(on(2, 2, 3)[1:], on(2, 2, 1)[1:], on(2, 1, 3)[1:]),
    PYTORCH + "97552": packed,
    PYTORCH + "81051": lambda: places(*range(9)).reshape(3, 3)[[1, 2], [2, 1]],
    PYTORCH + "117465": lambda: torch.randn(1).to("mps") + on(1),
    PYTORCH + "77764": lambda: functional.interpolate(on(1, 1, 4), 8, mode="linear"),
    PYTORCH + "86805": lambda: torch.sgn(on(2, dtype=torch.complex64)),
    PYTORCH + "174858": lambda: on(3, 3).index_reduce(0, places(0, 1, 2), on(3, 3), "prod"),
    PYTORCH + "141948": lambda: on(3).scatter_reduce(0, places(0, 1), on(2), "amax"),
    PYTORCH + "141287": decomposed,
    PYTORCH + "148194": lambda: functional.scaled_dot_product_attention(*[on(1, 2, 4, 8)] * 3),
    PYTORCH + "88978": lambda: functional.conv2d(
        on(1, 3, 8, 8, dtype=torch.uint8).to(torch.float32), on(2, 3, 3, 3)
    ),
    "https://github.com/thu-ml/tianshou/pull/1237": lambda: (
        torch.rand(2, dtype=torch.float64).type(torch.float32).to("mps")
    ),
    PYTORCH + "123995": lambda: functional.linear(
        on(4, 4), on(4, 4, dtype=torch.int8).to(torch.float32)
    ),
    "https://github.com/torchgeo/torchgeo-bench/issues/253": loaded,
    PYTORCH + "190064": lambda: functional.adaptive_max_pool2d(on(1, 1, 5, 5), 3),
}

FAILS: dict[str, tuple[Callable[[], Any], str]] = {
    "https://github.com/riffusion/riffusion-hobby/issues/125": (
        lambda: torch.randn(2, generator=torch.Generator("cpu"), device="mps"),
        "Expected a 'mps' device type for generator but found 'cpu'",
    ),
    "https://github.com/meta-pytorch/segment-anything-fast/issues/129": (
        lambda: torch.ones(2).pin_memory().to("mps", non_blocking=True),
        'Attempted to set the storage of a tensor on device "cpu" to a storage on different',
    ),
    "https://github.com/kijai/ComfyUI-PyramidFlowWrapper/issues/29": (
        lambda: torch.from_numpy(np.linspace(0, 1, 4)).to(device="mps"),
        NO_FLOAT64,
    ),
    "https://github.com/EleutherAI/lm-evaluation-harness/issues/1131": (
        lambda: functional.embedding(torch.tensor([1]), on(3, 4)),
        "Placeholder storage has not been allocated on MPS device!",
    ),
    PYTORCH + "130790": (
        lambda: functional.linear(on(4, 4), torch.ones(4, 4)),
        "Tensor for argument weight is on cpu but expected on mps",
    ),
    PYTORCH + "80732": (
        lambda: torch.nn.AdaptiveAvgPool2d((7, 7))(on(2, 5, 4, 4)),
        "Adaptive pool MPS: output sizes must be divisible by input sizes",
    ),
    PYTORCH + "122602": (lambda: on(2).double(), NO_FLOAT64),
    PYTORCH + "88614": (
        # conformance: ignore[DEV108] what a Mac refuses is asked for
        lambda: torch.tensor(1.0, dtype=torch.float64, device="mps"),
        NO_FLOAT64,
    ),
    "https://github.com/bghira/SimpleTuner/issues/1523": (
        # conformance: ignore[DEV108] what a Mac refuses is asked for
        lambda: torch.arange(0, 8, 2, dtype=torch.float64, device="mps") / 8,
        NO_FLOAT64,
    ),
}


@pytest.mark.parametrize("url", WORKS)
def test_what_works_there_works_here(url: str) -> None:
    assert WORKS[url]().is_mps


@pytest.mark.parametrize("url", FAILS)
def test_what_fails_there_fails_here(url: str) -> None:
    use, words = FAILS[url]
    with pytest.raises((RuntimeError, TypeError)) as caught:
        use()
    assert str(caught.value).startswith(words)
