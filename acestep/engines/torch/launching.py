"""Launching kernels of our own, and compiling many of them side by side."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_COMPILING: ContextVar[bool] = ContextVar("compiling", default=False)
_THREADS = 8
# Triton compiles another kernel for addresses that do not divide by so many bytes.
_ALIGNED = 16

Made = dict[Hashable, Any]
"""Kernels as they are compiled for launches that are alike, see `launch`."""


def launch(
    kernel: Any, grid: Sequence[int], *arguments: Any,
    made: Made | None = None, key: Hashable = None, **options: Any,
) -> None:  # fmt: skip
    """Launch a kernel of Triton, or within `compiling_together` only have it compiled.

    Args:
        kernel: the kernel.
        grid: programs, in one to three directions.
        arguments: those that are told when it is launched.
        made: where what was compiled is found again. To find it by the arguments takes Triton a
            sixth of a millisecond, five times as long as the launch.
        key: of launches that differ in addresses and in numbers that Triton does not look at.
        options: constants, and how it is compiled.
    """
    if _COMPILING.get():
        kernel.warmup(*arguments, grid=tuple(grid), **options)
        return
    if made is None or not all(map(_is_aligned, arguments)):
        kernel[tuple(grid)](*arguments, **options)
        return
    if key in made:
        constants = [options[name] for name in kernel.arg_names[len(arguments) :]]
        made[key][(*grid, 1, 1)[:3]](*arguments, *constants)
        return
    # Interpreted it is nothing that could be kept.
    if (compiled := kernel[tuple(grid)](*arguments, **options)) is not None:
        made[key] = compiled


@contextmanager
def compiling_together() -> Iterator[None]:
    """While it lasts launches compute nothing: their kernels are compiled, several at a time.

    Kernels that were compiled before, in this process or (by Triton's cache on disk) in an
    earlier one, are there at once. One that cannot be compiled says so when it is launched:
    here it would leave Triton in this mode for good.
    """
    import triton

    token = _COMPILING.set(True)
    try:
        with (
            ThreadPoolExecutor(_THREADS) as pool,
            triton.AsyncCompileMode(pool, ignore_errors=True),
        ):
            yield
    finally:
        _COMPILING.reset(token)


def _is_aligned(argument: Any) -> bool:
    return not isinstance(argument, torch.Tensor) or argument.data_ptr() % _ALIGNED == 0
