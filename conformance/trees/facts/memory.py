"""S6: a machine with an Apple GPU counts as having one."""

from __future__ import annotations

import pytest

from conformance.trees.asking import Asking, Told, Wrong
from conformance.trees.layouts import place_of

SETTINGS = ("MAX_CUDA_VRAM", "MAX_MPS_VRAM", "MAX_XPU_VRAM", "ACESTEP_DEVICE_MEMORY_GB")


def accelerator_counts(ask: Asking) -> Told:
    """An accelerator's memory is above zero."""
    memory = place_of(ask.tree, "memory")
    with pytest.MonkeyPatch.context() as patch, ask.questions() as lines:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        found = float(memory.value())
    line = lines[-1] if lines else memory.line
    if ask.target.device == "cpu":
        return Told(memory.line, f"without an accelerator it finds {found:.1f} GB")
    if not found > 0:
        raise Wrong(line, f"a machine with {ask.target.device} is said to have {found:g} GB")
    return Told(memory.line, f"{found:.1f} GB on {ask.target.device}")
