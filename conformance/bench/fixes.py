"""Checks that fixed files still import: each project's own, under what its PyTorch has.

``python -m conformance.bench.fixes FOLDER...`` mends a copy of every project with
``--unsafe-fixes`` for the oldest PyTorch that it asks for, and imports each changed file before
and after, in a process of its own. Modules that are not installed are stood in for; from the
installed PyTorch is taken what is newer than the one asked for. Prints a table, and what fails
after that did not fail before; exit status 1 if anything does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from conformance.scan.answering.fixing import fix_source
from conformance.scan.answering.versions import Version, required_torch
from conformance.scan.config import Config
from conformance.scan.judging.rules import RULES
from conformance.scan.reading.discover import discover

#: Of CPU; ten times as many of waiting, for on a busy machine an import takes long.
_SECONDS = 60
#: Errors of code that says what is not there.
_WRONG = ("SyntaxError", "NameError", "UnboundLocalError", "AttributeError", "TypeError", "ended")
#: What ``torch.accelerator`` got later than itself.
_LATER = {
    (2, 9): ("empty_cache", "memory_allocated", "max_memory_allocated", "memory_reserved"),
    (2, 10): ("get_memory_info",),
}


class _Open(type):
    """A class of which everything that is asked is there."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)

    def __getitem__(cls, item: object) -> type:
        return cls  # ``Float[Tensor, "height width"]``


class _Base(metaclass=_Open):
    def __init__(self, *given: object, **named: object) -> None:
        """Takes whatever a class that is not installed takes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class _Stub(ModuleType):
    """A module that is not installed: whatever is asked of it is there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Open(name, (_Base,), {}) if name[:1].isupper() else MagicMock(name=name)
        setattr(self, name, value)
        return value


class _Stubs(MetaPathFinder, Loader):
    """Stands in for the packages that a project imports and that are not installed.

    What an installed package asks for and can do without stays missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        top = sys.modules.get(name.partition(".")[0])
        if top is not None and not isinstance(top, _Stub):
            return None
        frame = sys._getframe(1)
        while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        theirs = not frame.f_code.co_filename.startswith(self.root)
        return None if theirs and top is None else ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


@dataclass
class Project:
    """What became of one project: files mended, and how many import before and after."""

    name: str
    torch: Version | None
    changed: list[str] = field(default_factory=list)
    fixes: int = 0
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> list[str]:
        """Files that imported before, or that fail now as only wrong code does.

        One that gets further than it did, and then lacks its data, is not among them.
        """
        return [
            f
            for f in self.changed
            if self.after[f] not in ("", self.before[f])
            and (not self.before[f] or self.after[f].startswith(_WRONG))
        ]

    def row(self) -> str:
        """The project as a row of a Markdown table."""
        asked = ".".join(map(str, self.torch)) if self.torch else "any"
        counts = [sum(not said for said in run.values()) for run in (self.before, self.after)]
        cells = [self.name, asked, len(self.changed), self.fixes, *counts, len(self.broken)]
        return "| " + " | ".join(map(str, cells)) + " |"


def mend(folder: Path, unsafe: bool = True) -> Project:
    """Mend a project in place."""
    project = Project(folder.name, required_torch(folder))
    for target in discover([str(folder)], Config(folder)):
        if not target.path.endswith(".py"):
            continue
        data = Path(target.path).read_bytes()
        fixed = fix_source(target.logical, data, RULES, unsafe=unsafe, torch=project.torch)
        if fixed.after != fixed.before:
            Path(target.path).write_bytes(fixed.after)
            project.changed.append(target.logical)
            project.fixes += fixed.count
    return project


def imports(root: Path, files: Sequence[str], torch: Version | None) -> dict[str, str]:
    """What goes wrong when each file is imported, nothing where nothing does.

    Each is imported in a fork of this process, which has the asked PyTorch already.
    """
    return {file: _forked(root, file, torch) for file in files}


def _forked(root: Path, file: str, torch: Version | None) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        said = _imported(root, file, torch)
        os.write(writing, said.encode()[:400])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return f"ended by signal {status}" if status else said


def _imported(root: Path, file: str, torch: Version | None) -> str:
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(sink, stream)
    for ending in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(ending, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    signal.alarm(10 * _SECONDS)
    as_of(torch)
    sys.path[:0] = [str((root / file).parent), str(root), str(root / "src")]
    sys.meta_path.append(_Stubs(root))
    sys.argv = [file]
    os.chdir(root)
    try:
        _import(root, root / file)
    except BaseException as error:  # noqa: BLE001 - a module may raise anything, or leave
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _import(root: Path, file: Path) -> None:
    """Import a file as a part of its package, or by its path where it is none of any."""
    folders = list(file.relative_to(root).parent.parts)
    while folders and not Path(root, *folders[:1], "__init__.py").is_file():
        root /= folders.pop(0)
    # What lies below a package belongs to it, also in a folder without an `__init__`.
    parts = [*folders, *([] if file.stem == "__init__" else [file.stem])]
    if folders and all(part.isidentifier() for part in parts):
        sys.path.insert(0, str(root))
        importlib.import_module(".".join(parts))
        return
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)


def as_of(version: Version | None) -> None:
    """Take from the installed PyTorch what is newer than a version."""
    torch = importlib.import_module("torch")
    if version is None:
        return
    if version < (2, 6):
        del torch.accelerator
        sys.modules.pop("torch.accelerator", None)
        return
    for since, names in _LATER.items():
        for name in names if version < since else ():
            with contextlib.suppress(AttributeError):
                delattr(torch.accelerator, name)


def check(folder: Path) -> Project:
    """Mend a copy of a project and import what changed, as it was and as it is."""
    importlib.import_module("torch")
    with tempfile.TemporaryDirectory() as room:
        copy = Path(room, folder.name)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".git"))
        project = mend(copy)
        project.after = imports(copy, project.changed, project.torch)
        project.before = imports(folder.resolve(), project.changed, project.torch)
    return project


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 0 when nothing fails that did not fail before."""
    parser = argparse.ArgumentParser("python -m conformance.bench.fixes", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    projects = [check(folder) for folder in parser.parse_args(argv).folders]
    head = "| project | torch asked | files changed | fixes | import before | after | newly fail |"
    rows = [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: |", *(p.row() for p in projects)]
    broken = [f"{p.name}/{f}: {p.after[f]}" for p in projects for f in p.broken]
    sys.stdout.write("\n".join([*rows, *broken]) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
