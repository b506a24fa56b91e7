"""What the simulation costs: small operators, a transformer block, and any command.

`python -m conformance.bench.simulate` prints times on the CPU, under two modes of torch's that do
nothing, and on the simulated device, from one run; then where the time of one `add` goes. With `-- command ... {device}` it also times that command with `cpu` and with `mps`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.simulate.device import BACKEND, HOST
from conformance.simulate.internals import (
    bare,
    no_function_modes,
    pop_function_mode,
    push_function_mode,
    storage_id,
)
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


class _EmptyFunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs) if kwargs else func(*args)


class _EmptyDispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@contextmanager
def _empty_modes() -> Iterator[None]:
    """What any simulation by modes pays, before it has asked anything."""
    with _EmptyDispatchMode(), _EmptyFunctionMode():  # type: ignore[no-untyped-call]
        yield


def _seconds(work: Work, patience: float) -> float:
    """The best of many short timings, in processor time: another program's turn does not count.

    `patience` is how many seconds to go on.
    """
    for _ in range(3):
        work()
    once = min(timeit.repeat(work, timer=time.process_time, number=1, repeat=5))
    number = max(1, min(100, int(1e-3 / once)))
    best, end = once, time.perf_counter() + patience
    while time.perf_counter() < end:
        best = min(best, timeit.timeit(work, timer=time.process_time, number=number) / number)
    return best


_WORLDS: dict[str, Callable[[], Any]] = {
    "CPU": nullcontext,
    "empty": _empty_modes,
    "simulated": mps,
}


def _table(patience: float, passes: int) -> list[str]:
    times: dict[str, dict[str, float]] = {}
    for _ in range(passes):
        for world, enter in _WORLDS.items():
            with enter(), torch.no_grad():
                torch.manual_seed(0)
                device = BACKEND if world == "simulated" else HOST.type
                work_of = _small(device)
                for work in work_of.values():
                    # So that none is the first, nor the one at which memory is at its peak.
                    work()
                for name, work in work_of.items():
                    row = times.setdefault(name, {})
                    row[world] = min(row.get(world, 1.0), _seconds(work, patience))
    lines = [f"{'work':<32}{'CPU µs':>10}{'empty modes':>13}{'simulated µs':>14}{'ratio':>8}"]
    for name, row in times.items():
        cpu, empty, simulated = (row[world] * 1e6 for world in _WORLDS)
        lines.append(
            f"{name:<32}{cpu:>10.1f}{empty:>13.1f}{simulated:>14.1f}{simulated / cpu:>8.2f}"
        )
    return lines


def _parts(patience: float, passes: int) -> list[str]:
    """Where the microseconds of one `add` of 64 numbers go, and what torch's own part of it is."""
    few, best = torch.randn(64), dict[str, float]()
    add = torch.Tensor.add

    def timed(name: str, work: Work) -> None:
        best[name] = min(best.get(name, 1.0), _seconds(work, patience))

    with torch.no_grad():
        for _ in range(passes):
            timed("nothing", lambda: None)
            timed("kernel", lambda: few + few)
            with _EmptyFunctionMode():
                timed("function", lambda: few + few)
    with torch.no_grad(), mps() as sim:
        x = torch.randn(64, device=BACKEND)
        # The peak of memory is elsewhere in a program, and not looked at with each call.
        torch.zeros(2**20, device=BACKEND)
        ledger = sim.core.ledger
        x + x

        def alone() -> torch.Tensor:
            out: torch.Tensor = bare(add, (), (x, x), {})
            return out

        def modeless() -> torch.Tensor:
            mode = pop_function_mode()
            try:
                return alone()
            finally:
                push_function_mode(mode)

        for _ in range(passes):
            timed("whole", lambda: x + x)
            timed("method", lambda: x.add(x))
            timed("modeless", modeless)
            with no_function_modes():
                timed("asked", lambda: (storage_id(x), type(x), x.dtype, x.ndim, x.nbytes))
                timed("alone", alone)
                timed("storage", lambda: alone().untyped_storage()._cdata)
                timed("marked", lambda: ledger.takes(alone().untyped_storage()))
    operands = 2 * (best["asked"] - best["nothing"])
    rows = {
        "the kernel, with torch's dispatch": best["kernel"],
        "torch: below the dispatch mode": best["alone"] - best["kernel"],
        "torch: without the function mode": best["modeless"] - best["alone"],
        "torch: asking five things of two operands": operands,
        "torch: the storage that was made": best["storage"] - best["alone"],
        "putting it in the ledger, and out again": best["marked"] - best["storage"],
    }
    rows["the rest: Python, looking up, counting"] = best["whole"] - sum(rows.values())
    rows["(a method, and not a sign: torch's function mode)"] = best["method"] - best["whole"]
    rows["(the function mode, where it does nothing)"] = best["function"] - best["kernel"]
    return [f"{name:<50}{seconds * 1e6:>6.2f}" for name, seconds in rows.items()]


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
    parser.add_argument("--patience", type=float, default=0.03, help="seconds a timing may take")
    # A machine has slow and fast seconds, and the worlds take turns in them.
    parser.add_argument("--passes", type=int, default=25, help="turns of each timing (25)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of a command, the best counts")
    options = parser.parse_args(words[:edge])
    effort = options.patience, options.passes
    lines = [*_table(*effort), "", "µs of one add, 64 numbers:", *_parts(*effort)]
    if words[edge + 1 :]:
        lines.append(_command(words[edge + 1 :], options.repeat))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
