"""Failures that people reported from real Macs, each reduced to a snippet that fails alike here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from conformance import simulate

DEVICE = "mps"


def speech_encoder() -> object:
    return functional.conv1d(torch.randn(1, 1, 66000).to(DEVICE), torch.randn(4, 1, 10).to(DEVICE))


def detector() -> object:
    # A distribution over 16 bins for each of the anchors of a large image.
    bins = torch.zeros(1, 16, 4, 65600, device=DEVICE)
    return torch.nn.Conv2d(16, 1, 1, bias=False, device=DEVICE)(bins)


def tall_matrix() -> object:
    return torch.linalg.qr(torch.randn(65536, 8, device=DEVICE), mode="reduced")


def randomised_svd() -> object:
    return torch.svd_lowrank(torch.randn(65536, 64, device=DEVICE), q=8)


def outer_product() -> object:
    # Nothing is written to the product, so that the host reserves no memory for it.
    return torch.empty(1, 72250, 72250, device=DEVICE)


def position_grid() -> object:
    return torch.zeros(8, 3, dtype=torch.float64).to(DEVICE)


def numpy_features() -> object:
    return torch.from_numpy(np.zeros((4, 2))).to(torch.device(DEVICE))


def eigenvalues() -> object:
    return torch.linalg.eigvalsh(torch.eye(3, device=DEVICE))


def speech_loss() -> object:
    scores = torch.zeros(4, 1, 3, device=DEVICE).log_softmax(-1)
    lengths = torch.tensor([4]), torch.tensor([2])
    return torch.nn.CTCLoss()(scores, torch.ones(1, 2, dtype=torch.long, device=DEVICE), *lengths)


def pooled_faces() -> object:
    return functional.interpolate(torch.zeros(1, 3, 250, 250, device=DEVICE), 160, mode="area")


def pinned_buffer() -> object:
    return torch.zeros([2, 2]).pin_memory()


def sent_to_a_worker() -> object:
    return ForkingPickler.dumps(torch.zeros(2, device=DEVICE))


def shared_model() -> object:
    return torch.nn.Linear(2, 2).to(DEVICE).share_memory()


def prompt_left_behind() -> object:
    return torch.nn.Embedding(8, 4).to(DEVICE)(torch.tensor([[1, 2]]))


def eight_bit_weights() -> object:
    return torch.randn(2, 2, device=DEVICE).to(torch.float8_e4m3fn)


def token_left_behind() -> object:
    tokens = torch.zeros(1, 3, dtype=torch.long, device=DEVICE)
    return torch.cat([tokens, torch.tensor(5)[None, None]], dim=-1)


def shuffled_loader() -> object:
    torch.set_default_device(DEVICE)
    try:
        return list(DataLoader([1, 2, 3], shuffle=True))
    finally:
        torch.set_default_device(None)


@dataclass(frozen=True)
class Public:
    """A public report: where it is, what it ran, and what was raised there."""

    url: str
    snippet: Callable[[], object]
    exception: type[Exception]
    words: str


REPORTS = [
    Public(
        "https://github.com/pytorch/pytorch/issues/187567",
        tall_matrix,
        RuntimeError,
        "Invalid buffer size: 16.00 GiB",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/187567#svd_lowrank",
        randomised_svd,
        RuntimeError,
        "Invalid buffer size: 16.00 GiB",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/141909",
        outer_product,
        RuntimeError,
        "Invalid buffer size: 19.45 G",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/152278",
        speech_encoder,
        NotImplementedError,
        "Output channels > 65536 not supported at the MPS device.",
    ),
    Public(
        "https://github.com/opendatalab/MinerU/issues/2438",
        detector,
        NotImplementedError,
        "Output channels > 65536 not supported at the MPS device.",
    ),
    Public(
        "https://github.com/huggingface/diffusers/issues/14639",
        position_grid,
        TypeError,
        "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
        "float64. Please use float32 instead.",
    ),
    Public(
        "https://github.com/Maratyszcza/PeachPy/issues/122",
        numpy_features,
        TypeError,
        "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
        "float64. Please use float32 instead.",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/151874",
        eigenvalues,
        NotImplementedError,
        "The operator 'aten::_linalg_eigh",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/160829",
        speech_loss,
        NotImplementedError,
        "The operator 'aten::_ctc_loss",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/97109",
        pooled_faces,
        RuntimeError,
        "Adaptive pool MPS: input sizes must be divisible by output sizes",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/86060",
        pinned_buffer,
        RuntimeError,
        'Attempted to set the storage of a tensor on device "cpu" to a storage on different '
        'device "mps:0".  This is no longer allowed; the devices must match.',
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/87688",
        sent_to_a_worker,
        RuntimeError,
        "_share_filename_: only available on CPU",
    ),
    Public(
        "https://github.com/pytorch/examples/issues/1105",
        shared_model,
        RuntimeError,
        "_share_filename_: only available on CPU",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/123995",
        prompt_left_behind,
        RuntimeError,
        "Placeholder storage has not been allocated on MPS device!",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/148420",
        eight_bit_weights,
        TypeError,
        "Trying to convert Float8_e4m3fn to the MPS backend but it does not have support for "
        "that dtype.",
    ),
    Public(
        "https://github.com/callummcdougall/ARENA_2.0/issues/21",
        token_left_behind,
        RuntimeError,
        "Expected all tensors to be on the same device, but found at least two devices, mps:0 "
        "and cpu!",
    ),
    Public(
        "https://github.com/pytorch/pytorch/issues/110820",
        shuffled_loader,
        RuntimeError,
        "Expected a 'mps:0' generator device but found 'cpu'",
    ),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.snippet.__name__)
def test_fails_as_it_failed_on_a_mac(sim: simulate.Simulation, report: Public) -> None:
    with pytest.raises(report.exception) as caught:
        report.snippet()
    assert str(caught.value).startswith(report.words)
    assert "[mps-sim]" in str(caught.value)
