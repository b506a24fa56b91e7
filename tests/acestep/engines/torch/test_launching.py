"""Tests of how kernels are launched, with what stands for one of Triton's: none runs here as it is."""

from __future__ import annotations

from typing import Any

import torch

from acestep.engines.torch.launching import Made, launch


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
