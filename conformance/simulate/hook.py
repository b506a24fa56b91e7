"""Adds the simulated device to a process as soon as torch has been imported there."""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import json
import multiprocessing.context
import multiprocessing.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

OPTIONS_VARIABLE = "CONFORMANCE_SIMULATE"
"""Environment variable that carries the machine's settings, as JSON, to child processes."""

REPORTS_VARIABLE = "CONFORMANCE_SIMULATE_REPORTS"
"""Environment variable that names the folder where each process leaves its report."""


DEBUG_VARIABLE = "CONFORMANCE_SIMULATE_DEBUG"
"""Environment variable that keeps this package's frames in tracebacks."""


class AfterTorch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets torch import as usual, then enters the simulation."""

    def __init__(self) -> None:
        self._loader: importlib.abc.Loader | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Takes the import of torch itself, once."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leaves that to torch's own loader."""
        assert self._loader is not None
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs torch's own code, then enters the simulation for the rest of the process."""
        assert self._loader is not None
        self._loader.exec_module(module)
        activate()


def arm() -> None:
    """Prepares the process; does nothing where the settings are not in the environment."""
    if OPTIONS_VARIABLE in os.environ:
        sys.meta_path.insert(0, AfterTorch())


def hand_down(options: dict[str, Any]) -> Callable[[], None]:
    """Gives this process's environment what makes the processes it starts simulated too.

    Returns what puts the environment back.
    """
    names = ("PYTHONPATH", OPTIONS_VARIABLE)
    before = {name: os.environ.get(name) for name in names}

    def put_back() -> None:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    package = Path(__file__).parent
    paths = [str(package / "startup"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Children must find this package even where it is used from a source tree.
    paths.append(str(package.parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ[OPTIONS_VARIABLE] = json.dumps(options)
    return put_back


def ensure() -> Callable[[], None]:
    """Has the device in this process from now on, where it is not there yet.

    Returns what takes it away again.
    """
    import torch  # noqa: F401 - where the hook is armed, this is what adds the device

    from conformance.simulate.session import active

    return activate() if active() is None else lambda: None


def start_by(method: str) -> Callable[[], None]:
    """Makes `method` the default of multiprocessing, as spawn is on macOS; a program may set another.

    Returns what puts the platform's own default back.
    """
    known: Any = multiprocessing.context
    default = known._default_context
    before = default._default_context
    default._default_context = known._concrete_contexts[method]

    def put_back() -> None:
        default._default_context = before

    return put_back


def activate() -> Callable[[], None]:
    """Enters the simulation until the process ends and leaves a report then.

    Returns what ends it earlier.
    """
    from conformance.simulate.session import mps

    options = json.loads(os.environ[OPTIONS_VARIABLE])
    put_back = start_by(options.pop("start", "spawn"))
    simulation = mps(**options)
    simulation.__enter__()
    if not os.environ.get(DEBUG_VARIABLE):
        from conformance.simulate.traces import fold

        fold()

    def leave_report() -> None:
        from conformance.simulate import report

        folder = os.environ.get(REPORTS_VARIABLE)
        recorder = simulation.recorder
        if folder and (recorder.operators or recorder.refusals):
            handle, name = tempfile.mkstemp(suffix=".part", dir=folder)
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(report.collect(simulation), stream)
            Path(name).rename(Path(name).with_suffix(".json"))

    atexit.register(leave_report)

    def in_forked_child() -> None:
        # Workers of multiprocessing leave without atexit, and start with their parent's counts.
        simulation.recorder.clear()
        multiprocessing.util.Finalize(None, leave_report, exitpriority=0)

    multiprocessing.util.register_after_fork(simulation, lambda _: in_forked_child())

    def leave() -> None:
        simulation.__exit__(None, None, None)
        put_back()

    return leave
