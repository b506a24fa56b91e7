"""Launching kernels of our own, and compiling many of them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_COMPILING: ContextVar[bool] = ContextVar("compiling", default=False)
_THREADS = 8


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, **options: Any) -> None:
    """Launch a kernel of Triton, or within `compiling_together` only have it compiled."""
    if _COMPILING.get():
        kernel.warmup(*arguments, grid=tuple(grid), **options)
    else:
        kernel[tuple(grid)](*arguments, **options)


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
