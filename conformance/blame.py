"""Who did it: walks a stack to the frame of the tree under test, of a library or of the suite."""

from __future__ import annotations

import linecache
import sys
import sysconfig
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

TREE, LIBRARY, SUITE, TRANSPARENT = "tree", "library", "suite", "transparent"

_HERE = Path(__file__).resolve().parent
_STDLIB = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


def line_within(frame: FrameType | None, folder: Path, root: Path) -> str:
    """`file:line`, relative to a root, of the innermost frame in a folder from a frame outwards."""
    while frame is not None and not frame.f_code.co_filename.startswith(f"{folder}/"):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{frame.f_code.co_filename.removeprefix(f'{root}/')}:{frame.f_lineno}"


@dataclass(frozen=True)
class Place:
    """A line of code: absolute file, line number, function and the line's text."""

    file: str
    line: int
    function: str
    source: str

    def short(self, root: Path | None = None) -> str:
        """`file:line`, relative to the tree's root, or from the package's folder on."""
        path = Path(self.file)
        if root is not None and path.is_relative_to(root):
            return f"{path.relative_to(root).as_posix()}:{self.line}"
        if "site-packages" in path.parts:
            index = len(path.parts) - 1 - path.parts[::-1].index("site-packages")
            path = Path(*path.parts[index + 1 :])
        return f"{path.as_posix()}:{self.line}"


@dataclass
class Touch:
    """One place that touched CUDA, and how often.

    Attributes:
        call: what was touched, for example `torch.cuda.empty_cache`.
        origin: `tree` or `library`.
        place: the frame that did it.
        via: where the tree called the library that did it, if it did.
        initialises: whether it would have started CUDA.
        thread: name of the thread it happened on.
        acts: whether something was called, constructed or moved, and not an attribute read.
    """

    call: str
    origin: str
    place: Place
    via: Place | None = None
    initialises: bool = False
    thread: str = "MainThread"
    count: int = field(default=1, compare=False)
    acts: bool = field(default=True, compare=False)

    def describe(self, root: Path | None = None) -> str:
        """One line: where, in what function, the call, and the source."""
        via = f", called from {self.via.short(root)}: {self.via.source}" if self.via else ""
        thread = "" if self.thread == "MainThread" else f" on thread {self.thread}"
        starts = " (would initialise CUDA)" if self.initialises else ""
        return (
            f"{self.place.short(root)} in {self.place.function}: {self.call}{starts}{thread}: "
            f"{self.place.source}{via}"
        )


class Blame:
    """Tells frames of one tree from those of libraries and of the suite.

    Frames of the standard library, of generated code and of the harness itself are looked
    through, so that `functools.partial`, `threading` or an import never take the blame.
    """

    def __init__(self, package: Path) -> None:
        """Args: package: the folder of the tree's package; everything below it is the tree."""
        self._package = str(package.resolve()) + "/"
        self._kinds: dict[str, str] = {}
        self._starters: dict[int, tuple[str, Place, Place | None]] = {}

    def kind(self, filename: str) -> str:
        """`tree`, `library`, `suite` or `transparent` for a code object's file name."""
        known = self._kinds.get(filename)
        if known is None:
            known = self._kinds[filename] = self._classify(filename)
        return known

    def find(self, depth: int = 2) -> tuple[str, Place, Place | None] | None:
        """Who called, as (origin, place, via); None where the suite itself did.

        Args:
            depth: frames to leave out, this one included.
        """
        frame: FrameType | None = sys._getframe(depth)
        while frame is not None:
            kind = self.kind(frame.f_code.co_filename)
            if kind == SUITE:
                return None
            if kind == TREE:
                return TREE, place(frame), None
            if kind == LIBRARY:
                return LIBRARY, place(frame), self._first_of_tree(frame.f_back)
            frame = frame.f_back
        return self._starters.get(threading.get_ident())

    def remember_starter(self, found: tuple[str, Place, Place | None] | None) -> None:
        """On a new thread: who started it, for calls that have no frame of their own there."""
        if found is not None:
            self._starters[threading.get_ident()] = found

    def forget_starter(self) -> None:
        """At the end of a thread; its identifier may be used again."""
        self._starters.pop(threading.get_ident(), None)

    def _first_of_tree(self, frame: FrameType | None) -> Place | None:
        while frame is not None:
            kind = self.kind(frame.f_code.co_filename)
            if kind == TREE:
                return place(frame)
            if kind == SUITE:
                return None
            frame = frame.f_back
        started = self._starters.get(threading.get_ident())
        return started[1] if started and started[0] == TREE else None

    def _classify(self, filename: str) -> str:
        if filename.startswith("<"):
            return TRANSPARENT
        path = str(Path(filename).resolve())
        if path.startswith(self._package):
            return TREE
        if path.startswith(str(_HERE) + "/"):
            return SUITE if path.startswith(str(_HERE / "suite") + "/") else TRANSPARENT
        if "site-packages" in path or "dist-packages" in path:
            return LIBRARY
        if any(path.startswith(root + "/") for root in _STDLIB):
            return TRANSPARENT
        return LIBRARY


def place(frame: FrameType) -> Place:
    """The line that a frame is on."""
    code = frame.f_code
    source = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return Place(code.co_filename, frame.f_lineno, code.co_qualname, source)
