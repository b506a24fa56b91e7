"""Settings of the process that several threads want at a time."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace

import pytest
import torch

from acestep.device import resolve
from acestep.device.switches import Switch


def test_a_setting_lasts_until_nobody_wants_it() -> None:
    """The first to leave takes nothing away from the other."""
    owner, switch = SimpleNamespace(tf32=True), Switch("tf32", False)
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with switch.held(owner):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with switch.held(owner):
        leave.set()
        thread.join()
        assert owner.tf32 is False
    assert owner.tf32 is True


def test_a_setting_is_given_back_after_an_error() -> None:
    owner, switch = SimpleNamespace(tf32="before"), Switch("tf32", False)
    with pytest.raises(ValueError, match="a song that failed"), switch.held(owner):
        raise ValueError("a song that failed")
    assert owner.tf32 == "before"


def test_kernels_that_are_tried_keep_the_precision() -> None:
    """`fixed_shapes` within `full_precision` gave convolutions TF32 back."""
    cudnn = torch.backends.cudnn
    # conformance: ignore[DEV101] a policy about a GPU that need not be there
    policy = dataclasses.replace(resolve("cpu"), device=torch.device("cuda"))
    before = cudnn.allow_tf32, cudnn.benchmark
    with policy.full_precision(), policy.fixed_shapes():
        assert (cudnn.allow_tf32, cudnn.benchmark) == (False, True)
    assert (cudnn.allow_tf32, cudnn.benchmark) == before
