"""Both engines in one run: `python -m acestep.bench.engines_benchmark --device …`.

Counts what each gives its library to do: operators of a step and of a second of decoding, and for
MLX how often a song is evaluated; then times whole songs, whose runs take turns. Operators of
PyTorch are its dispatches, those of MLX the nodes of the graph that a step adds.
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from acestep.console.terminal import (
    EXIT_OK,
    OneLineParser,
    add_device_option,
    quiet_libraries,
    result,
)

_TIMES = (1.0, 0.5)
_NODE = re.compile(r'label ="(\w+)", shape=rectangle')
"""A primitive in the drawing of a graph, where arrays have another shape."""
_VIEWS = frozenset(
    [
        "AsStrided",
        "Broadcast",
        "ExpandDims",
        "Flatten",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unflatten",
    ]
)
"""Primitives of MLX that compute nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    arguments = _parser().parse_args(argv)
    quiet_libraries()
    from acestep.device import resolve
    from acestep.handler import AceStepHandler

    handlers: dict[str, AceStepHandler] = {}
    for name in ("torch", "mlx"):
        policy = resolve(arguments.device, dtype=arguments.dtype, engine=name)
        handlers[name] = AceStepHandler()
        handlers[name].load(arguments.model, policy)
        result(handlers[name].status())
    for name, count in (("torch", dispatches), ("mlx", nodes)):
        engine: Any = handlers[name].engine
        step, second = work_of(engine, count)
        result(f"{name}: {step} operators a step, {second} a second of audio")
    with evaluations() as seen:
        song(handlers["mlx"], arguments.seconds)
    result(f"mlx: {seen[0]} evaluations a song of {arguments.seconds:g} s, 8 steps")
    spent: dict[str, list[float]] = {name: [] for name in handlers}
    for _ in range(arguments.repeat):
        for name, handler in handlers.items():
            start = time.perf_counter()
            song(handler, arguments.seconds)
            spent[name].append(time.perf_counter() - start)
    for name, times in spent.items():
        middle = statistics.median(times)
        result(f"{name}: {middle:.2f} s a song ({min(times):.2f} to {max(times):.2f})")
    return EXIT_OK


def song(handler: Any, seconds: float) -> None:
    """A song with words of its own, so that none is prepared."""
    made = handler.generate_music(
        f"a harp, take {time.perf_counter()}",
        "la la",
        audio_duration=seconds,
        inference_steps=8,
        seed=1,
        use_random_seed=False,
    )
    assert made["success"], made["error"]


def work_of(engine: Any, count: Callable[[Callable[[], Any]], int]) -> tuple[int, int]:
    """Operators of a step of a song of 10 s, and of decoding a second.

    Args:
        engine: a loaded checkpoint.
        count: how many a piece of work takes.
    """
    import torch

    traits, frames = engine.traits, 250
    width = traits.context_width - traits.channels
    context = torch.cat([engine.silence(frames)[None], torch.ones(1, frames, width)], dim=-1)
    with engine.working():
        state = engine.array(torch.randn(1, frames, traits.channels))
        condition = engine.unconditional(engine.encode_words([1] * 99, [1])[1])
        run = engine.velocity(condition, context, _TIMES)
        run(state, 0)
        second = round(traits.frame_rate)
        return (
            count(lambda: run(state, 1)),
            count(lambda: engine.decode(state[:, :second], second * traits.frame_samples)),
        )


def dispatches(work: Callable[[], Any]) -> int:
    """How often PyTorch is called on to compute, allocations and views left out."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counted = 0

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal counted
            counted += not (function.is_view or "empty" in function.__name__)
            return function(*args, **(kwargs or {}))

    counting: Any = Counting
    with counting():
        work()
    return counted


def nodes(work: Callable[[], Any]) -> int:
    """How many operators MLX is given to evaluate, views left out."""
    import mlx.core as mx

    found = 0

    def counted(*arrays: Any) -> None:
        nonlocal found
        graph = io.StringIO()
        mx.export_to_dot(graph, *_flat(arrays))
        found += sum(name not in _VIEWS for name in _NODE.findall(graph.getvalue()))
        evaluate(*arrays)

    evaluate = mx.eval
    with _replaced(counted):
        work()
    return found


@contextmanager
def evaluations() -> Iterator[list[int]]:
    """How often MLX evaluates meanwhile, in a list of one number."""
    import mlx.core as mx

    evaluate, seen = mx.eval, [0]

    def counted(*arrays: Any) -> None:
        seen[0] += 1
        evaluate(*arrays)

    with _replaced(counted):
        yield seen


@contextmanager
def _replaced(evaluate: Callable[..., None]) -> Iterator[None]:
    """Within the block all that the engine evaluates goes through a function."""
    import mlx.core as mx

    before = mx.eval
    mx.eval = evaluate
    try:
        yield
    finally:
        mx.eval = before


def _flat(arrays: Any) -> list[Any]:
    """The arrays in nested lists and tables."""
    if isinstance(arrays, dict):
        arrays = arrays.values()
    elif not isinstance(arrays, list | tuple):
        return [arrays]
    return [array for item in arrays for array in _flat(item)]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="engines_benchmark", description=__doc__.splitlines()[0])
    add_device_option(parser)
    parser.add_argument("--model", default="demo", help="which checkpoint (default: the built-in)")
    parser.add_argument("--dtype", default="float32", help="of all components (default: float32)")
    parser.add_argument("--seconds", type=float, default=10, help="of a song (default: 10)")
    parser.add_argument("--repeat", type=int, default=3, help="songs of each (default: 3)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
