"""The simulated machine, told without torch: which Mac it stands for, and its device's names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from conformance.simulate import releases

BACKEND = "mps"
"""The device type that simulated tensors report."""

REPORTED_NAME = "mps-sim"
"""The name under which results are reported, so that nobody takes them for a Mac's."""

ABSENT_BACKEND = "cuda"
ABSENT = "Torch not compiled with CUDA enabled"
"""What torch says on a Mac to any use of the backend that is absent there."""

GIB = 1024**3
FALLBACK_VARIABLE = "PYTORCH_ENABLE_MPS_FALLBACK"
WATERMARK_VARIABLE = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"
DEFAULT_WATERMARK = 1.7
"""High watermark over the recommended maximum: the allocator's default, documented in PyTorch's
notes on MPS environment variables; a 16 GB Mac reports 18.13 GB allowed (10.67 · 1.7)."""


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    if not 1 <= len(parts) <= 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"macos={text!r} is not a version; write for example macos='15.5'")
    return int(parts[0]), int(parts[1]) if len(parts) > 1 else 0


@dataclass(frozen=True)
class Machine:
    """One Mac to stand for.

    `macos` is a version such as "15.5"; `memory_gb` its unified memory in GiB; `fallback` whether
    missing operators run on the CPU (None reads PYTORCH_ENABLE_MPS_FALLBACK); `ratchet` whether
    the driver keeps every freed block of a size that nothing asked for again, as the real
    allocator does until its cache is emptied; `torch` a release to stand for that is older than
    the installed one, such as "2.12", whose missing operators are then `lacks` (`releases.py`).
    Raises ValueError for values that name no Mac.

    `recommended_bytes` is Metal's recommended working set, two thirds of small memories and three
    quarters of large ones: inferred from limits users report, 18.13 GB allowed of 16 (10.67 · 1.7)
    and 27.20 of 24. `allowed_bytes` is where the allocator refuses; None with the watermark off.
    `buffer_bytes` is Metal's longest buffer, half of the memory: 4 GiB of 8 (ggml-org/llama.cpp
    pull request 1706) and 16 of 32 (abetlen/llama-cpp-python issue 362); one report of a 48 GB
    machine says about 27.
    """

    macos: str = "15.5"
    memory_gb: float = 16
    fallback: bool | None = None
    ratchet: bool = False
    torch: str | None = None
    version: tuple[int, int] = field(init=False)
    falls_back: bool = field(init=False)
    recommended_bytes: int = field(init=False)
    allowed_bytes: int | None = field(init=False)
    buffer_bytes: int = field(init=False)
    lacks: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", _version(self.macos))
        if not self.memory_gb > 0:
            raise ValueError(f"memory_gb={self.memory_gb!r} must be above zero, for example 16")
        falls_back = self.fallback
        if falls_back is None:
            falls_back = os.environ.get(FALLBACK_VARIABLE, "0") not in ("", "0")
        object.__setattr__(self, "falls_back", falls_back)
        share = 2 / 3 if self.memory_gb <= 36 else 3 / 4
        recommended = int(self.memory_gb * GIB * share)
        ratio = float(os.environ.get(WATERMARK_VARIABLE, DEFAULT_WATERMARK))
        object.__setattr__(self, "recommended_bytes", recommended)
        object.__setattr__(self, "allowed_bytes", int(recommended * ratio) if ratio > 0 else None)
        object.__setattr__(self, "buffer_bytes", int(self.memory_gb * GIB / 2))
        object.__setattr__(self, "lacks", releases.lacks(self.torch))

    def at_least(self, major: int, minor: int = 0) -> bool:
        """Whether this machine runs macOS `major`.`minor` or newer."""
        return self.version >= (major, minor)
