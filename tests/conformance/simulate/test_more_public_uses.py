"""Thirty further public reports, none tried before: fifteen run on a Mac of today, fifteen do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

pytestmark = [
    pytest.mark.usefixtures("sim"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
HUB = "https://github.com/"
PYTORCH = HUB + "pytorch/pytorch/issues/"
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype"
NO_FLOAT8 = "Trying to convert Float8_e4m3fn to the MPS backend but it does not have support"
TOO_LONG = "Output channels > 65536 not supported at the MPS device"


def made(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def precision(device: str) -> torch.Tensor:
    scores = torch.arange(12.0).roll(5).reshape(3, 4).to(device)
    best = scores.topk(2, -1)[1].t()
    right = best == torch.tensor([1, 3, 0], device=device).view(1, -1).expand_as(best)
    return right.reshape(-1).float().sum(0, keepdim=True) / 3


def ensemble(device: str) -> torch.Tensor:
    weights = torch.arange(24.0).reshape(2, 3, 4).to(device)
    x = torch.einsum("ij,bjk->bik", torch.arange(6.0).reshape(2, 3).to(device), weights)
    return torch.einsum("bij,bjk->bik", x, weights.transpose(1, 2)) + torch.ones(3, device=device)


def chunked(device: str) -> torch.Tensor:
    parts = torch.arange(5.0).to(device).unsafe_chunk(4, 0)
    return parts[0] * parts[2]


def negated(device: str) -> torch.Tensor:
    x = torch.arange(4.0, device=device).reshape(2, 2)
    return torch.neg(x, out=torch.empty(2, 2, device=device).t())


def found(device: str) -> torch.Tensor:
    indices = np.asarray(np.where(np.eye(50, 40).T != 0))
    return torch.where(torch.from_numpy(indices)[1].to(device) == 8)[0]


def reduced(device: str) -> torch.Tensor:
    x = torch.arange(16.0).reshape(4, 4).to(device)
    x[0, 0] = math.nan
    return torch.stack([x.nansum(), x[1:, 1:].trace(), x.count_nonzero().float(), x[1:].mean()])


def adaptive(device: str) -> torch.Tensor:
    torch.manual_seed(0)
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2]).to(device)
    loss: torch.Tensor = layer(torch.ones(3, 4).to(device), torch.tensor([0, 3, 5]).to(device)).loss
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def unscaled(device: str) -> torch.Tensor:
    gradient, found = torch.arange(4.0).to(device), torch.zeros(1, device=device)
    torch._amp_foreach_non_finite_check_and_unscale_(
        [gradient], found, torch.full((1,), 0.25, device=device)
    )
    return torch.cat([gradient, found])


def drawn(device: str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(3)
    return torch.randn(4, generator=generator, device=device).isfinite()


RUNS: dict[str, Callable[[str], torch.Tensor]] = {
    PYTORCH + "87014": precision,
    PYTORCH + "81384": ensemble,
    PYTORCH + "91065": chunked,
    PYTORCH + "100764": negated,
    PYTORCH + "82543": lambda d: 1.0 - made(0.0, 0.49, 0.8, 0.9, 0.95).to(d),
    PYTORCH + "122233": found,
    PYTORCH + "178497": reduced,
    PYTORCH + "136148": lambda d: torch.isin(made(1, 2, 3).to(d), made(2, 5).to(d)),
    PYTORCH + "77754": lambda d: torch.bitwise_xor(*torch.arange(8).to(d).split(4)).cumsum(0),
    PYTORCH + "77794": lambda d: functional.conv2d(
        torch.arange(25.0).reshape(1, 1, 5, 5).to(d), torch.ones(1, 1, 3, 3).to(d)
    )[0, 0, [0, 1]],
    PYTORCH + "77764#adaptive-log-softmax": adaptive,
    PYTORCH + "141287#grad-scaler": unscaled,
    HUB + "ljleb/sd-webui-freeu/issues/12": lambda d: torch.fft.fftn(
        torch.arange(16.0).reshape(1, 4, 4).to(d).to(torch.float32), dim=(-2, -1)
    ).abs(),
    HUB + "AssemblyAI-Community/MinImagen/issues/16": lambda d: (
        torch.ones(64, 1).to(d) - torch.arange(512).reshape(64, 8).to(d)
    ),
    HUB + "nateraw/stable-diffusion-videos/pull/105": drawn,
}


@pytest.mark.parametrize("source", RUNS)
def test_it_runs_as_on_the_cpu(source: str) -> None:
    here, there = RUNS[source]("cpu"), RUNS[source]("mps")
    assert there.device.type == "mps"
    assert torch.equal(here, there.cpu())


class Buffered(torch.nn.Module):
    """A module with a number of 64 bits, as from NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.ones(3)))


def shuffled() -> Any:
    torch.set_default_device("mps")
    try:
        return list(DataLoader(list(range(4)), shuffle=True))  # type: ignore[arg-type]
    finally:
        torch.set_default_device(None)


FAILS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    HUB + "chemprop/chemprop/issues/711": (lambda: Buffered().to("mps"), TypeError, NO_FLOAT64),
    HUB + "unit8co/darts/issues/2326": (
        lambda: torch.nn.Linear(2, 2).double().to("mps"),
        TypeError,
        NO_FLOAT64,
    ),
    HUB + "BayraktarLab/cell2location/issues/406": (
        lambda: torch.tensor(np.ones(3)).to(torch.device("mps")),
        TypeError,
        NO_FLOAT64,
    ),
    HUB + "invoke-ai/InvokeAI/issues/4831": (
        lambda: torch.from_numpy(np.linspace(0, 1, 5)).to("mps"),
        TypeError,
        NO_FLOAT64,
    ),
    HUB + "zzc0721/torch-performance-test-data/issues/62": (
        lambda: torch.randn(2, 2, device="mps").to(torch.float8_e4m3fn),
        TypeError,
        NO_FLOAT8,
    ),
    HUB + "Comfy-Org/ComfyUI/issues/6859": (
        lambda: torch.ones(2, 2).to(torch.float8_e4m3fn).to("mps"),
        TypeError,
        NO_FLOAT8,
    ),
    HUB + "nari-labs/dia/issues/39": (
        lambda: torch.nn.Conv1d(1, 1, 3).to("mps")(torch.zeros(1, 1, 70000, device="mps")),
        NotImplementedError,
        TOO_LONG,
    ),
    HUB + "OpenBMB/VoxCPM/issues/232": (
        lambda: torch.nn.Conv1d(2, 2, 7, padding=27, dilation=9, groups=2).to("mps")(
            torch.zeros(1, 2, 80000, device="mps")
        ),
        NotImplementedError,
        TOO_LONG,
    ),
    HUB + "memmaptensor/ComfyUI-RK-Sampler/issues/5": (
        lambda: np.asarray(torch.ones(2, device="mps")),
        TypeError,
        "can't convert mps:0 device type tensor to numpy",
    ),
    HUB + "MahmoudAshraf97/ctc-forced-aligner/pull/51": (
        lambda: torch.ones(2, device="mps").argmax(-1).numpy(),
        TypeError,
        "can't convert mps:0 device type tensor to numpy",
    ),
    HUB + "YaoYinYing/RFdiffusion/issues/5": (
        lambda: torch.nn.Linear(2, 2)(torch.ones(1, 2, device="mps")),
        RuntimeError,
        "",
    ),
    HUB + "ubisoft/ComfyUI-Chord/issues/18": (
        lambda: torch.nn.Embedding(4, 2)(torch.tensor([1, 2], device="mps")),
        RuntimeError,
        "Placeholder storage has not been allocated on MPS device!",
    ),
    PYTORCH + "143864": (
        lambda: functional.adaptive_avg_pool2d(torch.ones(1, 1, 3, 3, device="mps"), 7),
        RuntimeError,
        "Adaptive pool MPS: output sizes must be divisible by input sizes",
    ),
    PYTORCH + "140718": (
        lambda: torch.lobpcg(torch.eye(5, device="mps") / 100),
        NotImplementedError,
        "is not currently implemented for the MPS device",
    ),
    HUB + "huggingface/transformers/issues/31897": (
        shuffled,
        RuntimeError,
        "Expected a 'mps:0' generator device but found 'cpu'",
    ),
}


@pytest.mark.parametrize("source", FAILS)
def test_it_fails_in_the_same_words(source: str) -> None:
    call, kind, words = FAILS[source]
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)
    assert "mps-sim" in str(raised.value)
