"""Weights in few bits, torchao's beside ours: time of a step's products, memory, and error.

    python -m acestep.bench.quantised_benchmark --device cuda

One layer's products at turbo's size, in bfloat16, for the rows of a song of 240 s and of one token.
torchao's rows need the package `torchao`.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from acestep.console.terminal import result
from acestep.device import DevicePolicy, resolve
from acestep.engines.torch.quantised import quantise

KINDS = ("int8", "fp8", "w8a8", "int4")
_WIDTHS = ((2048, 4096), (2048, 2048), (2048, 12288), (6144, 2048))
_THEIRS = {
    "int8": "Int8WeightOnlyConfig",
    "fp8": "Float8WeightOnlyConfig",
    "w8a8": "Int8DynamicActivationInt8WeightConfig",
    "int4": "Int4WeightOnlyConfig",
}
_LAYERS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each kind and side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="see acestep --device")
    parser.add_argument("--rows", type=int, nargs="+", default=[3000, 2])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args(argv)
    policy = resolve(arguments.device)
    torch.manual_seed(0)
    exact = _Stack().to(policy.device, torch.bfloat16).requires_grad_(False)
    given = [
        torch.randn(rows, 2048, device=policy.device, dtype=torch.bfloat16)
        for rows in arguments.rows
    ]
    with torch.inference_mode():
        wanted = [exact(rows).float() for rows in given]
        _row("bfloat16", exact, given, wanted, policy, arguments.repeats, 0.0)
        for kind in KINDS:
            for side, make in (("ours", _ours), ("torchao", _theirs)):
                try:
                    began = time.perf_counter()
                    model = make(copy.deepcopy(exact), kind, policy)
                    policy.synchronize()
                    spent = time.perf_counter() - began
                    name = f"{kind}, {side}"
                    _row(name, model, given, wanted, policy, arguments.repeats, spent)
                except (ImportError, RuntimeError, AttributeError, NotImplementedError) as error:
                    reason = " ".join(str(error).split())[:120]
                    result(f"{kind}, {side}: not here ({type(error).__name__}: {reason})")
    return 0


class _Stack(nn.Module):
    """The products of some layers, one after the other, without what lies between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(inner, outer, bias=False) for inner, outer in _WIDTHS)
            for _ in range(_LAYERS)
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, 2048]` through every product."""
        parts: Any
        for parts in self.layers:
            joined, out, opened, closed = parts
            heard = out(joined(rows)[:, :2048])
            wide = opened(rows + heard)
            rows = rows + closed(wide[:, :6144] * wide[:, 6144:].sigmoid())
        return rows


def _ours(model: nn.Module, kind: str, policy: DevicePolicy) -> nn.Module:
    return quantise(model, kind, policy)


def _theirs(model: nn.Module, kind: str, policy: DevicePolicy) -> nn.Module:
    quantization: Any = importlib.import_module("torchao.quantization")
    quantization.quantize_(model, getattr(quantization, _THEIRS[kind])())
    return model


def _row(
    name: str,
    model: Callable[[torch.Tensor], torch.Tensor],
    given: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    policy: DevicePolicy,
    repeats: int,
    made_in: float,
) -> None:
    cells = []
    for rows, right in zip(given, wanted, strict=True):
        first = time.perf_counter()
        made = model(rows).float()
        policy.synchronize()
        first = time.perf_counter() - first
        error = float((made - right).norm() / right.norm())
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            model(rows)
            policy.synchronize()
            times.append(time.perf_counter() - began)
        warm = statistics.median(times) * 1e6 / _LAYERS
        cells.append(
            f"{len(rows)} rows: {warm:.0f} us a layer, first {first:.2f} s, error {error:.4f}"
        )
    result(f"{name}: made in {made_in:.2f} s; {'; '.join(cells)}")


if __name__ == "__main__":
    raise SystemExit(main())
