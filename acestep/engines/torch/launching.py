"""Launching kernels of our own, and compiling many of them side by side."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_COMPILING: ContextVar[bool] = ContextVar("compiling", default=False)
# As many as there are kernels in a step and in the reading of a prompt.
_MOST_THREADS = 16
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
        with Compilers() as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
            yield
    finally:
        _COMPILING.reset(token)


class Compilers(ThreadPoolExecutor):
    """Threads that compile a kernel each, and load it too.

    To launch a kernel Triton has a compiler of C make some code for it, a fifth of a second
    each, when it is first launched: one after the other.
    """

    def __init__(self) -> None:
        super().__init__(min(os.cpu_count() or 1, _MOST_THREADS))
        self._device = torch.accelerator.current_device_index()
        # Kernels of one name as a rule share that code: the second finds what the first had made.
        self._turns: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def submit(self, compiled: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        """Triton's work of one kernel, and its loading."""
        return super().submit(self._loaded, compiled)

    def _loaded(self, compiled: Callable[[], Any]) -> Any:
        torch.accelerator.set_device_index(self._device)
        kernel = compiled()
        with self._turns[kernel.name]:
            # A property: to ask for it is what loads the kernel.
            _ = kernel.run
        return kernel


def _is_aligned(argument: Any) -> bool:
    return not isinstance(argument, torch.Tensor) or argument.data_ptr() % _ALIGNED == 0
