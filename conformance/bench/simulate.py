"""What the simulation costs: small operators, a transformer block, and any command.

`python -m conformance.bench.simulate` prints times on the CPU and on the simulated device from
one run. With `-- command ... {device}` it also times that command with `cpu` and with `mps`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from contextlib import nullcontext

import torch

from conformance.simulate.device import BACKEND, HOST
from conformance.simulate.session import mps

Work = Callable[[], object]


def _small(device: str) -> dict[str, Work]:
    """Work on one device, by its name in the table."""
    few, many = torch.randn(64, device=device), torch.randn(512, 512, device=device)
    tokens = torch.randn(1, 64, 256, device=device)
    block = torch.nn.TransformerEncoderLayer(256, 4, 512, batch_first=True).to(device)
    signal = torch.randn(1, 64, 4096, device=device)
    filters = torch.nn.Conv1d(64, 64, 7, padding=3).to(device)
    return {
        "add, 64 numbers": lambda: few + few,
        "view": lambda: few.view(8, 8),
        "sum to a Python number": lambda: few.sum().item(),
        "softmax, 512 × 512": lambda: many.softmax(-1),
        "matmul, 512 × 512": lambda: many @ many,
        "conv1d, 64 channels × 4096": lambda: filters(signal),
        "transformer block, 64 tokens": lambda: block(tokens),
    }


def _seconds(work: Work, number: int, repeat: int) -> float:
    work()
    return min(timeit.repeat(work, number=number, repeat=repeat)) / number


def _table(number: int, repeat: int) -> list[str]:
    times: dict[str, dict[str, float]] = {}
    for device in (HOST.type, BACKEND):
        with mps() if device == BACKEND else nullcontext(), torch.no_grad():
            torch.manual_seed(0)
            for name, work in _small(device).items():
                times.setdefault(name, {})[device] = _seconds(work, number, repeat)
    lines = [f"{'work':<32}{'CPU µs':>10}{'simulated µs':>14}{'ratio':>8}"]
    for name, row in times.items():
        cpu, simulated = row[HOST.type] * 1e6, row[BACKEND] * 1e6
        lines.append(f"{name:<32}{cpu:>10.1f}{simulated:>14.1f}{simulated / cpu:>8.2f}")
    return lines


def _command(command: list[str], repeat: int) -> str:
    from conformance.simulate import cli

    times: dict[str, float] = {}
    for device in (HOST.type, BACKEND):
        words = [word.replace("{device}", device) for word in command]
        best = float("inf")
        for _ in range(repeat):
            start = time.perf_counter()
            if device == BACKEND:
                status = cli.main([BACKEND, "--", *words])
            else:
                status = subprocess.run(words, check=False).returncode
            if status:
                raise SystemExit(f"{' '.join(words)}: exit status {status}")
            best = min(best, time.perf_counter() - start)
        times[device] = best
    cpu, simulated = times[HOST.type], times[BACKEND]
    return f"command: CPU {cpu:.2f} s, simulated {simulated:.2f} s, ratio {simulated / cpu:.2f}"


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, and the ratio of a command if one is given after `--`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    edge = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m conformance.bench.simulate")
    parser.add_argument("--number", type=int, default=200, help="runs per timing (200)")
    parser.add_argument("--repeat", type=int, default=5, help="timings, of which the best (5)")
    options = parser.parse_args(words[:edge])
    lines = _table(options.number, options.repeat)
    if words[edge + 1 :]:
        lines.append(_command(words[edge + 1 :], options.repeat))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
