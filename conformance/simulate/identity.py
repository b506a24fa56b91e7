"""Answers as a Mac where chosen packages ask which system they run on, and nobody else."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from conformance.importing import answered

# (kernel release, by macOS version); public: Darwin is macOS + 9 since macOS 11.
_DARWIN_BEFORE_MACOS = 9


class _Answering(ModuleType):
    """Stands for a module: some names are answered otherwise, all others are the module's own."""

    def __init__(self, plain: ModuleType, answers: dict[str, Any]) -> None:
        # What a module has by itself would hide what the plain one answers.
        object.__getattribute__(self, "__dict__").clear()
        object.__setattr__(self, "_plain", plain)
        object.__setattr__(self, "_answers", answers)

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name in own["_answers"]:
            return own["_answers"][name]
        return getattr(own["_plain"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "__dict__")["_plain"], name, value)


def answers(macos: str) -> dict[str, dict[str, Any]]:
    """What `sys` and `platform` say on an Apple silicon Mac with this version of macOS."""
    release = f"{int(macos.partition('.')[0]) + _DARWIN_BEFORE_MACOS}.0.0"
    long = f"macOS-{macos}-arm64-arm-64bit"
    said = {"system": "Darwin", "machine": "arm64", "processor": "arm", "release": release}
    asked: dict[str, Any] = {name: functools.partial(str, value) for name, value in said.items()}
    asked["platform"] = lambda aliased=False, terse=False: long
    asked["mac_ver"] = lambda *_, **__: (macos, ("", "", ""), "arm64")
    node = platform.node()
    asked["uname"] = lambda: platform.uname_result(
        "Darwin", node, release, said["release"], "arm64"
    )
    return {"sys": {"platform": "darwin"}, "platform": asked}


@contextmanager
def as_mac(packages: Sequence[str], macos: str = "15.5") -> Iterator[None]:
    """Let modules of these packages that are imported within the block see a Mac.

    Python itself and every library go on seeing the machine they run on: only an import of
    `sys` or `platform` by a module of the packages gets the other answers.
    """
    stand = {name: _Answering(sys.modules[name], said) for name, said in answers(macos).items()}
    with answered(packages, lambda name, _: stand.get(name)):
        yield
