"""Checks what fixes write without running a line of the projects that they are written into.

``python -m conformance.bench.written FOLDER...`` mends a copy of every project with
``--unsafe-fixes`` for the oldest PyTorch that it asks for, and looks at each changed file: it must
compile; a name that a fix brings in must be bound there; what it names of torch must be in the
installed PyTorch, less what is newer than the one asked for; and an expression that the fix has
written, if it only asks what there is, is evaluated there. That is less than an import of the file:
whether the module's own code runs is not seen. Prints a table; exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import operator
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conformance.bench.fixes import as_of, mend
from conformance.scan.answering.versions import Version
from conformance.scan.knowing.signatures import spelled
from conformance.scan.reading.nodes import parts_of

#: What may be called while an expression is evaluated: questions, which change nothing.
_ASKS = frozenset(
    {
        "torch.device",
        "torch.cuda.is_available",
        "torch.backends.mps.is_available",
        "torch.mps.is_available",
        "torch.accelerator.is_available",
        "torch.accelerator.current_accelerator",
    }
)


@dataclass
class Written:
    """What fixes wrote into the files of one project, and what is wrong with it."""

    name: str
    torch: Version | None
    files: int = 0
    fixes: int = 0
    compiled: int = 0
    names: set[str] = field(default_factory=set)
    expressions: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def row(self) -> str:
        """The project as a row of a Markdown table."""
        asked = ".".join(map(str, self.torch)) if self.torch else "any"
        counts = [self.files, self.fixes, self.compiled, len(self.names), len(self.expressions)]
        return "| " + " | ".join(map(str, [self.name, asked, *counts, len(self.wrong)])) + " |"


def check(folder: Path) -> Written:
    """Mend a copy of a project and look at what was written."""
    with tempfile.TemporaryDirectory() as room:
        copy = Path(room, folder.name)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".git"))
        project = mend(copy)
        written = Written(folder.name, project.torch, len(project.changed), project.fixes)
        for file in project.changed:
            before, after = (Path(root, file).read_bytes() for root in (folder, copy))
            _compare(written, file, before, after)
    said = _forked(sorted(written.names), sorted(written.expressions), written.torch)
    written.wrong += [line for line in said.splitlines() if line]
    return written


def _compare(written: Written, file: str, before: bytes, after: bytes) -> None:
    try:
        compile(after, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        written.wrong.append(f"{file}: {error}")
        return
    written.compiled += 1
    old, new = ast.parse(before), ast.parse(after)
    torch = {
        alias.asname or "torch"
        for node in parts_of(new)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "torch" or (alias.name.startswith("torch.") and not alias.asname)
    }
    known = {node.id for node in parts_of(old) if isinstance(node, ast.Name)}
    brought = {node.id for node in parts_of(new) if isinstance(node, ast.Name)} - known - torch
    written.wrong += [
        f"{file}: the fix writes {name}, which nothing binds"
        for name in sorted(brought)
        if not hasattr(builtins, name)
    ]
    held = {ast.dump(node) for node in parts_of(old) if isinstance(node, ast.expr)}
    for node in _new(new, held):
        written.names.update(filter(None, (_of_torch(part, torch) for part in parts_of(node))))
        written.expressions.update(ast.unparse(part) for part in _whole(node, torch, held))


def _new(tree: ast.AST, held: set[str]) -> Iterator[ast.expr]:
    """The outermost expressions that were not there before."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.expr):
            yield from _new(child, held)
        elif ast.dump(child) not in held:
            yield child


def _of_torch(node: ast.AST, torch: set[str]) -> str | None:
    """``torch.accelerator.synchronize`` as the attributes behind ``torch``."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return ".".join(names) if names and isinstance(node, ast.Name) and node.id in torch else None


def _whole(node: ast.expr, torch: set[str], held: set[str]) -> Iterator[ast.expr]:
    """The largest new parts of an expression that ask torch what there is, and do nothing else."""
    names = {part.id for part in parts_of(node) if isinstance(part, ast.Name)}
    called = {spelled(part.func) for part in parts_of(node) if isinstance(part, ast.Call)}
    if names == {"torch"} and "torch" in torch and called and called <= _ASKS:
        if ast.dump(node) not in held and not isinstance(node, ast.Name):
            yield node
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _whole(child, torch, held)
        elif isinstance(child, ast.keyword):
            yield from _whole(child.value, torch, held)


def _forked(names: list[str], expressions: list[str], version: Version | None) -> str:
    """What is wrong with names and expressions under a version, found out in a copy of this
    process, which loses what is newer."""
    import torch

    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "w") as stream:
            as_of(version)
            for name in names:
                try:
                    operator.attrgetter(name)(torch)
                except AttributeError as error:
                    stream.write(f"torch.{name}: {error}\n")
            for text in expressions:
                try:
                    eval(text, {"torch": torch})
                except Exception as error:  # noqa: BLE001 - whatever it raises is what is asked
                    stream.write(f"{text}: {type(error).__name__}: {error}\n".replace("\n", " "))
                    stream.write("\n")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 0 when nothing that was written is wrong."""
    parser = argparse.ArgumentParser("python -m conformance.bench.written", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    projects = [check(folder) for folder in parser.parse_args(argv).folders]
    head = "| project | torch asked | Python files changed | fixes | compile | names of torch written | expressions evaluated | wrong |"
    rows = [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    out = [
        *rows,
        *(p.row() for p in projects),
        *(f"{p.name}: {w}" for p in projects for w in p.wrong),
    ]
    sys.stdout.write("\n".join(out) + "\n")
    return 1 if any(p.wrong for p in projects) else 0


if __name__ == "__main__":
    sys.exit(main())
