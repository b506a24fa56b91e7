"""Which devices there are, and how they are named."""

from __future__ import annotations

import pytest
import torch

from acestep.device import DEVICE_CHOICES, canonical
from acestep.errors import DeviceError


def test_choices_are_the_public_ones() -> None:
    assert DEVICE_CHOICES == ("auto", "cuda", "mps", "cpu")


def test_canonical() -> None:
    assert canonical("CPU") == ("cpu", 0)
    assert canonical(torch.device("mps")) == canonical("mps:0") == ("mps", 0)
    assert canonical("cuda:3") == ("cuda", 3)
    assert canonical("cuda")[0] == "cuda"
    with pytest.raises(DeviceError):
        canonical("banana")
