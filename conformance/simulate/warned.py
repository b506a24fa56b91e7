"""Has each warning name the line it would name without the simulation's frames on the stack."""

from __future__ import annotations

import contextlib
import itertools
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from torch.fx import traceback as fx_traceback
from torch.overrides import handle_torch_function

from conformance.simulate.patching import Patches
from conformance.simulate.tracing import compile_as

_HERE = str(Path(__file__).parent)
_PACKAGE = __name__.rpartition(".")[0]
_ASKS: Any = handle_torch_function
"""What torch's functions written in Python call to ask a mode, which then calls them again."""


def install(patches: Patches) -> None:
    """Follows `warnings` until `patches.undo`: what Python warns of, and what C++ does."""

    def warn(
        message: str | Warning,
        category: type[Warning] | None = None,
        stacklevel: int = 1,
        source: Any = None,
        **options: Any,
    ) -> None:
        if options and sys.version_info < (3, 12):
            # It takes none, and says so in words that count what it is given.
            plain_warn(message, **options)
        # This frame is one more.
        levels = 1 + _levels(sys._getframe(1), stacklevel)
        plain_warn(message, category, levels, source, **options)

    def show(shown: warnings.WarningMessage) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != shown.filename:
            frame = frame.f_back
        outside = next(_callers(frame), None)
        if outside is None or outside is frame:
            plain_show(shown)
            return
        # Our modules have no registry of their own, and "once" would be for all that they call.
        once.pop((str(shown.message), shown.category), None)
        names = outside.f_globals
        warnings.warn_explicit(
            shown.message,
            shown.category,
            outside.f_code.co_filename,
            outside.f_lineno,
            names.get("__name__"),
            names.setdefault("__warningregistry__", {}),
            names,
            shown.source,
        )

    def format_stack() -> list[str]:
        """What anomaly detection tells of a forward call."""
        if fx_traceback.has_preserved_node_meta():
            return plain_format()
        frames = reversed(list(_callers(sys._getframe(1))))
        return traceback.StackSummary.extract((at, at.f_lineno) for at in frames).format()

    plain_format: Callable[[], list[str]] = patches.set(fx_traceback, "format_stack", format_stack)
    once: dict[Any, Any] = vars(warnings)["onceregistry"]
    plain_warn = patches.set(warnings, "warn", warn)
    compile_as(patches, warn, "aten::warn")
    # C++ takes the innermost frame and asks the filters before anybody can say whose it is. So
    # what it warns of ours comes through, as often as it likes, and is judged at its own line.
    plain_show = patches.set(warnings, "_showwarnmsg", show)
    for name in [name for name in sys.modules if name.startswith(f"{_PACKAGE}.")]:
        patches.set(sys.modules[name], "__warningregistry__", None)
    warnings.filterwarnings("always", module=f"{_PACKAGE}.")
    ours = warnings.filters[0]

    def leave() -> None:
        with contextlib.suppress(ValueError):
            warnings.filters.remove(ours)  # type: ignore[attr-defined]

    patches.later(leave)


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Frames from this one outward, as they would be if no mode had been asked."""
    while frame is not None:
        asked = _is_ours(frame)
        while frame is not None and _is_ours(frame):
            frame = frame.f_back
        if frame is None:
            return
        if asked and frame.f_code is _ASKS.__code__ and frame.f_back is not None:
            # The function that asked stands further in a second time.
            frame = frame.f_back.f_back
        else:
            if _counts(frame):
                yield frame
            frame = frame.f_back


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_HERE)


def _counts(frame: FrameType) -> bool:
    """Whether a frame is a level to `warnings`, which passes over Python's own import."""
    name = frame.f_code.co_filename
    return not ("importlib" in name and "_bootstrap" in name)


def _levels(frame: FrameType, stacklevel: int) -> int:
    """How many levels up from `frame` lies what is `stacklevel` levels up without our frames."""
    callers = _callers(frame)
    wanted = next(itertools.islice(callers, max(stacklevel, 1) - 1, None), None)
    levels = 1
    at: FrameType | None = frame
    while at is not None and at is not wanted:
        levels += _counts(at)
        at = at.f_back
    return levels
