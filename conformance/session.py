"""One run of the suite in one process: the target in force, the tripwire, and what a case owes."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conformance.blame import TREE
from conformance.entrypoints import FACTS, CallLog, expand, resolve
from conformance.expect import Expectation
from conformance.report import ABSENT, EXPECTED, FAIL, PASS
from conformance.targets import Target, find
from conformance.tree import Absent, ImportFailed, Tree
from conformance.tripwire import Tripwire


class TouchedCuda(Exception):  # noqa: N818 (the verdict on a case)
    """The tree under test touched CUDA on a device that is not CUDA."""


class NeverCalled(Exception):  # noqa: N818
    """A case declares an entry point that it did not call."""


@dataclass
class _Running:
    """What is known of the case under way."""

    rows: list[str]
    wire: Tripwire | None
    calls: CallLog
    absent_rows: list[str] = field(default_factory=list)
    reported: int = 0


class Session:
    """The state that the plugin's hooks share."""

    def __init__(self, tree: Tree, targets: list[Target], expectations: list[Expectation]) -> None:
        self.tree, self.targets, self.expectations = tree, targets, expectations
        self._active: Target | None = None
        self._presence = ExitStack()
        self._case: _Running | None = None

    def expect(self, items: Iterable[pytest.Item]) -> list[Expectation]:
        """Mark the cases that must fail; returns the expectations that match none."""
        unused = list(self.expectations)
        for item in items:
            name, target = case_name(item)
            for expectation in self.expectations:
                if expectation.matches(name, target):
                    item.add_marker(pytest.mark.xfail(reason=expectation.reason, strict=True))
                    unused = [e for e in unused if e is not expectation]
        return unused

    @contextmanager
    def case(self, item: pytest.Item) -> Iterator[None]:
        """Everything around one case: its target, the tripwire, the watch on entry points."""
        target = target_of(item)
        if target is not None:
            self._switch(target)
        rows = [row for mark in item.iter_markers("covers") for row in mark.args]
        armed: AbstractContextManager[Any] = contextlib.nullcontext()
        lists_devices = item.get_closest_marker("lists_devices") is not None
        # The simulated Mac hides this machine's CUDA, so that there it is absent for all.
        has_cuda = target is not None and not target.simulated and find()["cuda"].present
        if target is not None and not target.may_use_cuda and not (lists_devices and has_cuda):
            names_cuda = item.get_closest_marker("names_cuda") is not None
            armed = Tripwire(self.tree.package, may_name_cuda=names_cuda)
        with armed as wire:
            running = _Running(rows, wire, CallLog({}))
            self._case = running
            running.calls = CallLog(self._functions(running))
            try:
                with running.calls.watching():
                    yield
            finally:
                self._case = None

    @contextmanager
    def outcomes(self, item: pytest.Item) -> Iterator[None]:
        """Turn what the tree lacks into `absent`, and a failed import into one line."""
        try:
            yield
        except Absent as error:
            pytest.skip(f"absent: {error}")
        except ImportFailed as error:
            pytest.fail(str(error), pytrace=False)

    def verify(self, item: pytest.Item) -> None:
        """Raise for touches of CUDA, and for declared entry points that were not called."""
        running = self._running()
        self._raise_touches(running)
        uncalled = [row for row in running.calls.uncalled if row not in running.absent_rows]
        if uncalled:
            raise NeverCalled(f"the case declares {', '.join(uncalled)} and did not call it")

    def verify_teardown(self, item: pytest.Item) -> None:
        """Raise for touches that came after the case itself."""
        running = self._running()
        found = running.wire.failures if running.wire else []
        if len(found) > running.reported:
            self._raise_touches(running)

    def annotate(
        self, item: pytest.Item, call: pytest.CallInfo[None], made: pytest.TestReport
    ) -> None:
        """Attach the case's data to pytest's report."""
        running = self._running()
        name, target = case_name(item)
        wire = running.wire
        touches = [t.describe(self.tree.root) for t in wire.failures] if wire else []
        library = {
            f"{t.call} @ {t.place.short(self.tree.root)}": t.count
            for t in (wire.library_touches if wire else [])
        }
        data = {
            "phase": made.when,
            "name": name,
            "target": target,
            "outcome": _outcome(made),
            "rows": running.rows,
            "absent_rows": running.absent_rows,
            "message": _message(call, made),
            "place": self._place(call),
            "touches": touches,
            "library": library if made.when == "teardown" else {},
        }
        made.user_properties.append(("conformance", data))
        if touches and made.failed and not isinstance(_error(call), TouchedCuda):
            made.sections.append(("touches of CUDA", "\n".join(touches)))

    def close(self) -> None:
        """Leave the target in force."""
        self._presence.close()
        self._active = None

    def _switch(self, target: Target) -> None:
        if self._active is target:
            return
        self.close()
        self._presence.enter_context(target.activate())
        self._active = target

    def _running(self) -> _Running:
        if self._case is None:
            raise RuntimeError("no case is under way")
        return self._case

    def _functions(self, running: _Running) -> dict[str, Any]:
        """The functions behind each declared entry point; what the tree lacks is noted."""
        found: dict[str, Any] = {}
        for row in running.rows:
            if row in FACTS:
                continue
            try:
                for name in expand(self.tree, row):
                    found[name] = resolve(self.tree, name)
            except Absent:
                running.absent_rows.append(row)
            except ImportFailed:
                # The case itself meets the same failure, and reports it.
                continue
        return found

    def _raise_touches(self, running: _Running) -> None:
        found = running.wire.failures if running.wire else []
        running.reported = len(found)
        if found:
            lines = "\n  ".join(touch.describe(self.tree.root) for touch in found)
            raise TouchedCuda(f"the tree touched CUDA:\n  {lines}")

    def _place(self, call: pytest.CallInfo[None]) -> str:
        """`file:line` of what failed: a touch, the tree's innermost frame, else the last."""
        error = _error(call)
        running = self._running()
        if error is None or isinstance(error, pytest.skip.Exception):
            return ""
        if isinstance(error, TouchedCuda) and running.wire:
            touch = running.wire.failures[0]
            shown = touch.place if touch.origin == TREE or touch.via is None else touch.via
            return shown.short(self.tree.root)
        cause: BaseException | None = error
        frames: list[traceback.FrameSummary] = []
        while cause is not None:
            frames = [*traceback.extract_tb(cause.__traceback__), *frames]
            cause = cause.__cause__ or cause.__context__
        package = f"{self.tree.package}/"
        ours = [f for f in frames if f.filename.startswith(package)]
        last = (ours or [f for f in frames if "/suite/" in f.filename] or frames)[-1:]
        return "".join(_short(frame, self.tree.root) for frame in last)


def case_name(item: pytest.Item) -> tuple[str, str]:
    """A case's name without its target, and the target's name."""
    target = target_of(item)
    name = f"{item.path.name}::{item.nodeid.partition('::')[2]}"
    if target is None:
        return name, ""
    head, bracket, parameters = name.partition("[")
    rest = [p for p in parameters.removesuffix("]").split("-") if p]
    for word in target.name.split("-"):
        if word in rest:
            rest.remove(word)
    return (f"{head}{bracket}{'-'.join(rest)}]" if rest else head), target.name


def target_of(item: pytest.Item) -> Target | None:
    """The target a case is to run on, if it takes one."""
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get("target") if callspec is not None else None
    return found if isinstance(found, Target) else None


def _short(frame: traceback.FrameSummary, root: Path) -> str:
    path = Path(frame.filename)
    shown = path.relative_to(root) if path.is_relative_to(root) else path.name
    return f"{shown}:{frame.lineno}"


def _error(call: pytest.CallInfo[None]) -> BaseException | None:
    return call.excinfo.value if call.excinfo is not None else None


def _outcome(made: pytest.TestReport) -> str:
    if made.skipped:
        return EXPECTED if hasattr(made, "wasxfail") else ABSENT
    return PASS if made.passed else FAIL


def _message(call: pytest.CallInfo[None], made: pytest.TestReport) -> str:
    error = _error(call)
    if error is None:
        return "" if made.passed else "was expected to fail, and passed"
    text = str(getattr(error, "msg", None) or error).strip()
    if isinstance(error, TouchedCuda):
        return " ".join(text.split("\n  ")[:2])
    first = (text.splitlines() or [""])[0]
    named = isinstance(error, pytest.fail.Exception | pytest.skip.Exception)
    return first if named else f"{type(error).__name__}: {first}"
