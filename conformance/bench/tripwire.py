"""What the tripwire costs on a full generation: `python -m conformance.bench.tripwire`."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from conformance.suite.support import Api, initialised
from conformance.targets import choose
from conformance.tree import install, locate
from conformance.tripwire import Tripwire


def measure(run: Callable[[], Any], package: Any, repeats: int) -> tuple[list[float], list[float]]:
    """CPU seconds of runs without and with the tripwire, alternating.

    CPU time rather than time on the clock, so that other work on the machine does not count.
    """
    times: tuple[list[float], list[float]] = ([], [])
    run()
    for _ in range(repeats):
        for armed in (False, True):
            with Tripwire(package) if armed else nullcontext():
                start = time.process_time()
                run()
                times[armed].append(time.process_time() - start)
    return times


def main() -> None:
    """Print the medians and their ratio, of one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the song")
    parser.add_argument("--steps", type=int, default=8, help="diffusion steps")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each kind")
    given = parser.parse_args()
    (target,) = choose(["cpu"])
    tree = locate(None)
    install(tree)
    api = Api(tree)
    handler = initialised(api, target.device)

    def run() -> None:
        result = handler.generate_music(
            captions="piano",
            audio_duration=given.seconds,
            inference_steps=given.steps,
            seed=1,
            use_random_seed=False,
        )
        if not result["success"]:
            raise RuntimeError(result["error"])

    plain, armed = measure(run, tree.package, given.repeats)
    low, high = statistics.median(plain), statistics.median(armed)
    sys.stdout.write(
        f"{given.seconds:g} s, {given.steps} steps, {given.repeats} runs each: without "
        f"{low:.3f} s, with {high:.3f} s of CPU time (medians), ratio {high / low:.3f}\n"
    )


if __name__ == "__main__":
    main()
