"""Calls what is public in a tree with small values, in a process of its own, and sees how far it gets.

No verdict comes of it: values that fit a name and a type need not fit a function. What it tells
is which of the tree's functions a run has entered, and which of its lines act on CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import random
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

from conformance.targets import Target, find
from conformance.tree import PACKAGE, Absent, ImportFailed, Tree, child_environment, install
from conformance.trees.asking import Asking, bare
from conformance.trees.facts.training import Model
from conformance.trees.layouts import place_of
from conformance.trees.missing import Missing, load
from conformance.trees.patience import limited
from conformance.trees.scratch import children
from conformance.trees.shield import no_network, own_home
from conformance.trees.surface import AREAS, area_of
from conformance.tripwire import Tripwire

_CALL_SECONDS, _ALL_SECONDS = 0.5, 30.0
# What starts, fetches, waits for people or takes away has no place in a trial.
_LEFT_ALONE = (
    "main",
    "download",
    "ensure_",
    "serve",
    "launch",
    "upload",
    "delete",
    "remove",
    "install",
    "browser",
    "kill",
    "shutdown",
    "exit",
    "input",
    "prompt_",
    "wizard",
    "interactive",
    "menu",
)
_NUMBERS = {"duration": 10.0, "bpm": 90, "seconds": 10.0, "gb": 8.0, "sample_rate": 48000}


def exercised(tree: Tree, target: Target, folder: Path) -> dict[str, Any]:
    """What a process that calls everything found: functions entered, and touches of CUDA."""
    log = folder / "exercised.json"
    command = [sys.executable, "-m", "conformance.trees.exercise", str(tree.root), target.name]
    with subprocess.Popen(
        [*command, str(log), str(folder)],
        env=child_environment(tree),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as run:
        children.append(run)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(timeout=5 * _ALL_SECONDS)
        finally:
            children.remove(run)
            run.kill()
    found: dict[str, Any] = {"entered": [], "touches": []}
    if log.is_file():
        found = json.loads(log.read_text(encoding="utf-8"))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Call everything of one tree, and leave what was entered in a file as it goes."""
    parser = argparse.ArgumentParser(prog="python -m conformance.trees.exercise")
    for name in ("tree", "target", "log", "folder"):
        parser.add_argument(name)
    given = parser.parse_args(argv)
    tree, target = Tree(Path(given.tree), own=False), find()[given.target]
    install(tree)
    with (
        own_home(Path(given.folder)),
        no_network(lambda host, frame: None),
        Missing().standing_in(),
        target.activate(packages=(PACKAGE,)),
    ):
        ask = Asking(tree, target, Path(given.folder))
        modules, instances = _imported(ask)
        with Tripwire(tree.package, may_name_cuda=True, may_ask=True) as wire:
            _call_and_tell(ask, modules, instances, wire, Path(given.log))


def _call_and_tell(
    ask: Asking,
    modules: Sequence[ModuleType],
    instances: dict[type, Any],
    wire: Tripwire,
    log: Path,
) -> None:
    """Call everything, and leave what was noticed after each module: a call may end it all."""
    entered = Entered(ask.tree)
    ends = time.monotonic() + _ALL_SECONDS
    for module in modules:
        with entered.watching():
            _call_module(ask, module, instances, ends)
        touches = [] if ask.target.may_use_cuda else wire.failures
        told = {"entered": sorted(entered.names)}
        told["touches"] = [touch.describe(ask.tree.root) for touch in touches]
        log.write_text(json.dumps(told), encoding="utf-8")


class Entered:
    """Which functions of a tree have been entered, as `file:qualified name`."""

    def __init__(self, tree: Tree) -> None:
        self._package, self._root = f"{tree.package}/", f"{tree.root}/"
        self.names: set[str] = set()
        self._seen: set[int] = set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch within a block, on this thread and those that are started in it."""
        before = sys.getprofile()
        sys.setprofile(self._note)
        threading.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(before)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or id(code) in self._seen:
            return
        self._seen.add(id(code))
        if code.co_filename.startswith(self._package):
            self.names.add(f"{code.co_filename.removeprefix(self._root)}:{code.co_qualname}")


def _imported(ask: Asking) -> tuple[list[ModuleType], dict[type, Any]]:
    """The modules that are about devices, and the two handlers."""
    modules, instances = [], {}
    for name in ask.tree.module_names():
        below = name.removeprefix(f"{PACKAGE}.")
        if area_of(below) in AREAS:
            with contextlib.suppress(ImportFailed, LookupError, Absent):
                modules.append(load(ask.tree, below))
    for thing in ("handler", "planner"):
        with contextlib.suppress(ImportFailed, Absent, LookupError):
            value = place_of(ask.tree, thing).value
            instances[value] = bare(value)
    return modules, instances


def _call_module(ask: Asking, module: ModuleType, instances: dict[type, Any], ends: float) -> None:
    """Every public function and method of a module, in turn, until time is up."""
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if time.monotonic() > ends:
            return
        if isinstance(value, type):
            _call_methods(ask, value, instances)
        elif inspect.isfunction(value):
            _call(ask, value)


def _call_methods(ask: Asking, cls: type, instances: dict[type, Any]) -> None:
    owner = next((made for made in instances.values() if isinstance(made, cls)), None)
    if owner is None:
        with _limited():
            owner = instances[cls] = bare(cls, **_values(ask, cls))
    for name, member in list(vars(cls).items()):
        if name.startswith("__") or isinstance(member, type) or owner is None:
            continue
        with _limited():
            found = getattr(owner, name)
            if callable(found):
                _call(ask, found)


def _call(ask: Asking, function: Callable[..., Any]) -> None:
    name = getattr(function, "__name__", "")
    if any(word in name.lower() for word in _LEFT_ALONE):
        return
    with _limited():
        result = function(**_values(ask, function))
        if inspect.iscoroutine(result):
            result.close()
        elif inspect.isgenerator(result):
            next(result, None)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """A call that may fail, and may not take long."""

    try:
        with limited(_CALL_SECONDS):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001, S110 (the tree's own code, called with what it may not want)
        pass


def _values(ask: Asking, function: Any, depth: int = 0) -> dict[str, Any]:
    """Small values for the arguments that have no default."""
    target = vars(function).get("__init__") if isinstance(function, type) else function
    try:
        hints = typing.get_type_hints(target)
    except Exception:  # noqa: BLE001 (names in annotations need not be importable)
        hints = {}
    given = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if "device" in name and not name.startswith(("on_", "is_")):
            given[name] = ask.target.device
        elif parameter.default is parameter.empty:
            given[name] = _value(ask, name, hints.get(name), depth)
    return given


def _value(ask: Asking, name: str, hint: Any, depth: int) -> Any:
    options = [o for o in typing.get_args(hint) if o is not type(None)]
    if typing.get_origin(hint) in (typing.Union, getattr(__import__("types"), "UnionType", None)):
        hint = options[0] if options else None
    origin = typing.get_origin(hint) or hint
    simple = {bool: False, list: [], dict: {}, tuple: (), set: set(), bytes: b""}
    if origin in simple:
        return simple[origin]
    if origin is int or origin is float:
        return next((v for key, v in _NUMBERS.items() if key in name), 2)
    if origin is str:
        return _text(ask, name)
    if hint is torch.Tensor or (hint is None and name in ("x", "tensor", "latents", "mask")):
        return torch.ones(2, 4, device=ask.target.device)
    if hint is Path:
        return ask.folder / "file"
    if hint is torch.device:
        return torch.device(ask.target.device)
    if hint is torch.dtype:
        return torch.float32
    if name == "model" or hint is torch.nn.Module:
        return Model()
    if hint is random.Random:
        return random.Random(0)
    if isinstance(hint, type) and depth < 2:
        return bare(hint, **_values(ask, hint, depth + 1))
    if origin is Callable or name.endswith(("callback", "_fn", "func")):
        return lambda *_, **__: None
    return _text(ask, name) if hint is None and depth == 0 else None


def _text(ask: Asking, name: str) -> str:
    if any(word in name for word in ("path", "dir", "folder", "file")):
        return str(ask.folder / "file")
    return "vllm" if "backend" in name else "piano"


def _end_with_parent() -> None:
    """End when nobody holds the other side of the input any more, which nobody writes to."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main()
