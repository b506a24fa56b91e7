"""Tests of how kernels are launched, with what stands for one of Triton's: none runs here as it is."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from acestep.engines.torch.launching import Compilers, Made, launch


class Kernel:
    """As Triton's, a launch gives what was compiled, which takes constants in order too."""

    arg_names = ("place", "count", "ROWS", "DEPTH")

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **options: Any) -> Compiled:
            self.told.append(("looked up", grid, arguments[1], options["num_warps"]))
            return Compiled(self)

        return run


class Compiled:
    """What a launch left."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.kernel.told.append(("kept", grid, *arguments[1:]))


def test_launches_that_are_alike_are_looked_up_once() -> None:
    kernel, made, places = Kernel(), Made(), torch.zeros(64)
    odd = torch.zeros(65)[1:]
    for place, count, grid, key in (
        (places, 1, (3,), "a"),
        (places[4:], 2, (4, 5), "a"),
        (odd, 3, (3,), "a"),
        (places, 4, (3,), "b"),
    ):
        # Constants come in any order, and with how the kernel is compiled.
        launch(kernel, grid, place, count, made=made, key=key, DEPTH=8, num_warps=4, ROWS=16)
    launch(kernel, (1,), places, 5, DEPTH=8, num_warps=4, ROWS=16)
    assert kernel.told == [
        ("looked up", (3,), 1, 4),
        ("kept", (4, 5, 1), 2, 16, 8),
        ("looked up", (3,), 3, 4),
        ("looked up", (3,), 4, 4),
        ("looked up", (1,), 5, 4),
    ]


class Loading:
    """As what Triton compiled: asked for what runs it, it has that made and is loaded."""

    def __init__(self, name: str, under_way: list[str]) -> None:
        self.name, self._under_way = name, under_way
        self.overlapped = self.loaded = False

    @property
    def run(self) -> None:
        self.overlapped = self.name in self._under_way
        self._under_way.append(self.name)
        time.sleep(0.01)
        self._under_way.remove(self.name)
        self.loaded = True


def test_kernels_are_loaded_where_they_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device of whoever compiles, and of those of one name one after the other."""
    told: dict[int, int] = {}
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    monkeypatch.setattr(
        torch.accelerator,
        "set_device_index",
        lambda index: told.__setitem__(threading.get_ident(), index),
    )
    under_way: list[str] = []
    kernels = [Loading(name, under_way) for name in ("product", "product", "read") * 2]

    def failing() -> Any:
        raise RuntimeError("it does not compile")

    with Compilers() as pool:
        # As Triton submits it: the kernel is a default, for the loop goes on meanwhile.
        made = [pool.submit(lambda kernel=kernel: kernel) for kernel in kernels]
        failed = pool.submit(failing)
    assert [future.result() for future in made] == kernels
    assert all(kernel.loaded and not kernel.overlapped for kernel in kernels)
    assert set(told.values()) == {3}
    assert threading.get_ident() not in told
    with pytest.raises(RuntimeError, match="does not compile"):
        failed.result()
