"""Asks a tree something through its own signatures, and sees which of its lines decided."""

from __future__ import annotations

import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, NoneType
from typing import Any

import torch

from conformance.blame import line_within
from conformance.targets import Target
from conformance.tree import Blocked, Tree


class Wrong(AssertionError):  # noqa: N818 (the verdict on a tree)
    """A fact does not hold; carries the tree's line that decides it.

    Attributes:
        place: `file:line` in the tree.
    """

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True)
class Told:
    """A fact holds: where that is decided, and how, in one sentence."""

    place: str
    sentence: str


@dataclass
class Asking:
    """What a question is asked of: the tree, the device to be judged, a folder for files."""

    tree: Tree
    target: Target
    folder: Path
    asked: list[str] = field(default_factory=list)

    def line(self, frame: FrameType | None) -> str:
        """`file:line` of the innermost frame of the tree from a frame outwards."""
        return line_within(frame, self.tree.package, self.tree.root)

    def line_of(self, error: BaseException) -> str:
        """`file:line` of the tree's innermost frame in an error."""
        package = f"{self.tree.package}/"
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if f.filename.startswith(package)]
        if not ours:
            return ""
        return f"{ours[-1].filename.removeprefix(f'{self.tree.root}/')}:{ours[-1].lineno}"

    @contextmanager
    def questions(self) -> Iterator[list[str]]:
        """The tree's lines that ask whether there is CUDA, which but on CUDA there is not."""
        plain, lines = torch.cuda.is_available, list[str]()

        def is_available() -> bool:
            if line := self.line(sys._getframe(1)):
                lines.append(line)
            return self.target.may_use_cuda and bool(plain())

        torch.cuda.is_available = is_available
        try:
            yield lines
        finally:
            torch.cuda.is_available = plain

    def returned_at(self, call: Callable[[], Any]) -> str:
        """The line of the tree's innermost return while a call is made once more."""
        lines, error = returns_of(self.tree, call)
        if error is not None:
            lines.append(self.line_of(error))
        return lines[0] if lines else ""


def returns_of(tree: Tree, call: Callable[[], Any]) -> tuple[list[str], Exception | None]:
    """`file:line` of each return of the tree, from the innermost out, while a call is made.

    Returns:
        the lines, and what the call raised.
    """
    package, lines = f"{tree.package}/", list[str]()

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(package):
            return None
        if event == "return":
            lines.append(f"{file.removeprefix(f'{tree.root}/')}:{frame.f_lineno}")
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        call()
    except Exception as error:  # noqa: BLE001 (the trace is wanted, whatever the tree does)
        return lines, error
    finally:
        sys.settrace(before)
    return lines, None


def filled(
    function: Callable[..., Any], known: Mapping[str, Any], depth: int = 0
) -> dict[str, Any]:
    """Arguments for a call: those known by name, defaults for the rest.

    Raises:
        Blocked: an argument without a default that nothing here is known for.
    """
    given: dict[str, Any] = {}
    hints = _hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name == "self":
            continue
        if name in known:
            given[name] = known[name]
        elif parameter.default is parameter.empty:
            made = _made_from(hints.get(name, parameter.annotation), depth)
            if made is None:
                raise Blocked(f"cannot ask {function.__qualname__}: what is its '{name}'?")
            given[name] = made
    return given


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """What the annotations of a function, or of a class's constructor, name."""
    target = vars(function).get("__init__") if isinstance(function, type) else function
    try:
        return typing.get_type_hints(target)
    except Exception:  # noqa: BLE001 (names in annotations need not be importable)
        return {}


def bare(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """An instance as far as its constructor comes; what it set before it failed stays."""
    made = cls.__new__(cls)
    try:
        made.__init__(*args, **kwargs)
    except Exception:  # noqa: BLE001 (the question may not need what the constructor wanted)
        return made
    return made


_SIMPLE: dict[Any, Any] = {str: "none", int: 1, float: 1.0, bool: False, Path: Path("none")}
_DEPTH = 2


def _made_from(annotation: Any, depth: int) -> Any:
    """A value of an annotation that can be made of nothing, such as a configuration.

    A text or number is made for a configuration's field alone, where it decides no verdict.
    """
    if depth and annotation in _SIMPLE:
        return _SIMPLE[annotation]
    options = [o for o in typing.get_args(annotation) if isinstance(o, type) and o is not NoneType]
    wanted = options[0] if options else annotation
    if not isinstance(wanted, type) or wanted in (inspect.Parameter.empty, *_SIMPLE):
        return None
    try:
        return wanted(**filled(wanted, {}, depth + 1)) if depth < _DEPTH else wanted()
    except Exception:  # noqa: BLE001 (the tree's own constructor)
        return None
