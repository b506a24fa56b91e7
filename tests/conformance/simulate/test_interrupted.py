"""A signal's handler that raises, wherever Python lets it, leaves the ledger of memory right."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from conformance import simulate
from conformance.simulate import memory

_LARGE = 2**18
_OURS = memory.__file__


class _HandlerError(Exception):
    """What the handler raises."""


def _work() -> None:
    """Has storages of both kinds come, go, and stay until the end."""
    x = torch.ones(3, device="mps")
    kept = [x + x for _ in range(3)]
    large = torch.ones(_LARGE, device="mps")
    for _ in range(3):
        large = large * 2
        kept.append(x[1:] * 2)
    del large
    torch.mps.current_allocated_memory()


def _interrupted(at: int) -> bool:
    """Runs the work, which is left at the ledger's call of this number; False where it has fewer."""
    left = at

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        # Python calls a signal's handler as a function begins, and after a call of C's.
        if event in ("call", "c_return") and frame.f_code.co_filename == _OURS:
            left -= 1
            if left < 0:
                raise _HandlerError

    profiled: Callable[..., Any] | None = sys.getprofile()
    sys.setprofile(look)
    try:
        _work()
    except _HandlerError:
        return True
    finally:
        sys.setprofile(profiled)
    return False


def test_memory_is_exact_wherever_a_signal_comes(sim: simulate.Simulation) -> None:
    for _ in range(3):
        _work()
    before = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
    rows = set(sim.core.ledger.blocks)
    at = 0
    while _interrupted(at):
        at += 1
        assert not any(torch.empty(3).is_mps for _ in range(20)), at
        after = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        assert after == before, at
        assert set(sim.core.ledger.blocks) == rows, at
    assert at > 100


def test_nothing_of_python_runs_as_a_storage_dies(sim: simulate.Simulation) -> None:
    large = torch.ones(_LARGE, device="mps")
    called = []
    profiled: Callable[..., Any] | None = sys.getprofile()
    sys.setprofile(lambda frame, event, _: called.append(frame) if event == "call" else None)
    try:
        del large
    finally:
        sys.setprofile(profiled)
    assert not called
    assert not sim.core.ledger.blocks
    assert torch.mps.current_allocated_memory() == 0
