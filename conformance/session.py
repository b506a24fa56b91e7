"""One run of the suite in one process: the target in force, the tripwire, and what a case owes."""

from __future__ import annotations

import contextlib
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from conformance.blame import TREE, line_within
from conformance.entrypoints import FACTS, CallLog, expand, resolve
from conformance.expect import Expectation
from conformance.report import ABSENT, BLOCKED, BROKEN, EXPECTED, FAIL, PASS
from conformance.targets import Target, find
from conformance.tree import PACKAGE, Absent, Blocked, ImportFailed, Tree, forget
from conformance.trees.asking import Told, Wrong
from conformance.trees.missing import Missing
from conformance.trees.patience import TookTooLong, limited
from conformance.trees.shield import no_network, own_home
from conformance.trees.surface import Share
from conformance.tripwire import Tripwire

#: Seconds that a case may take on another tree; most take less than one.
PATIENCE = 180.0
_EXPECTED_BY = pytest.StashKey[Expectation]()


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
    decided: str = ""
    place: str = ""
    told: str = ""
    network: list[str] = field(default_factory=list)
    shares: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    acts: list[str] = field(default_factory=list)
    engine: str = "torch"


class Session:
    """The state that the plugin's hooks share."""

    def __init__(self, tree: Tree, targets: list[Target], expectations: list[Expectation]) -> None:
        self.tree, self.targets, self.expectations = tree, targets, expectations
        self._active: Target | None = None
        self._presence = ExitStack()
        self._case: _Running | None = None
        self.missing = Missing()
        self.folder: Path | None = None
        self.patience = PATIENCE

    def expect(self, items: Iterable[pytest.Item]) -> list[Expectation]:
        """Mark the cases that must fail; returns the expectations that match none."""
        unused = list(self.expectations)
        for item in items:
            name, target = case_name(item)
            for expectation in self.expectations:
                if expectation.matches(name, target):
                    item.stash[_EXPECTED_BY] = expectation
                    item.add_marker(pytest.mark.xfail(reason=expectation.reason, strict=True))
                    unused = [e for e in unused if e is not expectation]
        return unused

    @contextmanager
    def case(self, item: pytest.Item) -> Iterator[None]:
        """Everything around one case: its target, the tripwire, the watch on entry points."""
        target = target_of(item)
        if target is not None:
            self._switch(target)
        self.missing.decided.clear()
        rows = [row for mark in item.iter_markers("covers") for row in mark.args]
        armed: AbstractContextManager[Any] = contextlib.nullcontext()
        lists_devices = item.get_closest_marker("lists_devices") is not None
        # The simulated Mac hides this machine's CUDA, so that there it is absent for all.
        has_cuda = target is not None and not target.simulated and find()["cuda"].present
        if target is not None and not target.may_use_cuda and not (lists_devices and has_cuda):
            names_cuda = item.get_closest_marker("names_cuda") is not None
            armed = Tripwire(self.tree.package, may_name_cuda=names_cuda, may_ask=not self.tree.kin)
        with armed as wire:
            running = _Running(rows, wire, CallLog({}))
            running.engine = target.engine if target is not None else "torch"
            self._case = running
            running.calls = CallLog(self._functions(running))
            try:
                with running.calls.watching(), self._shielded(running):
                    yield
            finally:
                self._case = None

    @contextmanager
    def _shielded(self, running: _Running) -> Iterator[None]:
        """No network for any tree; for another's, a home of its own and stand-ins as well."""

        def noted(host: str, frame: Any) -> None:
            wire = running.wire.blame if running.wire is not None else None
            found = wire.find(3) if wire is not None else None
            place = (found[2] or found[1]).short(self.tree.root) if found is not None else "?"
            running.network.append(f"{host} @ {place}")

        with ExitStack() as stack:
            stack.enter_context(no_network(noted))
            if self.folder is not None:
                stack.enter_context(own_home(self.folder))
                stack.enter_context(self.missing.standing_in())
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            yield

    def _patience(self) -> AbstractContextManager[None]:
        """Nothing that another tree does may keep a run from its end."""
        return contextlib.nullcontext() if self.tree.kin else limited(self.patience)

    @contextmanager
    def outcomes(self, item: pytest.Item) -> Iterator[None]:
        """Turn what the tree lacks into `absent` or `blocked`, and a failed import into a line."""
        running = self._running()
        try:
            with self._patience():
                yield
        except TookTooLong as error:
            running.place = running.place or line_within(
                error.frame, self.tree.root, self.tree.root
            )
            _fail(error)
        except Absent as error:
            running.decided = running.decided or ABSENT
            raise pytest.skip.Exception(f"absent: {error}") from None
        except Blocked as error:
            if self.tree.kin:
                _fail(error)
            running.decided = running.decided or BLOCKED
            raise pytest.skip.Exception(f"blocked: {error}") from None
        except ImportFailed as error:
            running.decided = running.decided or ("" if self.tree.kin else BROKEN)
            _fail(error)
        except Wrong as error:
            if (blocked := self.missing.had_a_part_in(error)) is not None:
                running.decided = running.decided or BLOCKED
                raise pytest.skip.Exception(f"blocked: {blocked}") from None
            running.place = running.place or error.place
            _fail(error)

    def tell(self, told: Told) -> None:
        """Note how a fact holds; what rests on a missing library is not decided.

        Raises:
            Blocked: a stand-in had to answer.
        """
        if self.missing.decided:
            names = ", ".join(self.missing.decided)
            raise Blocked(f"needs {names}, which decides it", next(iter(self.missing.decided)))
        running = self._running()
        running.place, running.told = told.place, told.sentence

    def note_shares(self, shares: Iterable[Share], acts: list[str]) -> None:
        """Note what was entered of another tree's functions, and what acts on CUDA there."""
        running = self._running()
        running.shares = {s.module: (s.area, s.entered, s.public) for s in shares}
        running.acts = acts

    def verify(self, item: pytest.Item) -> None:
        """Raise for touches of CUDA, and for declared entry points that were not called."""
        running = self._running()
        if item.get_closest_marker("asks_a_fact") is None:
            self._raise_touches(running)
        uncalled = [row for row in running.calls.uncalled if row not in running.absent_rows]
        if uncalled:
            raise NeverCalled(f"the case declares {', '.join(uncalled)} and did not call it")

    def verify_teardown(self, item: pytest.Item) -> None:
        """Raise for touches that came after the case itself."""
        running = self._running()
        found = running.wire.failures if running.wire else []
        if len(found) > running.reported and item.get_closest_marker("asks_a_fact") is None:
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
            "outcome": _outcome(made, running.decided),
            "rows": running.rows,
            "absent_rows": running.absent_rows,
            "message": self._plain(_message(call, made) or running.told),
            "place": running.place or self._place(call),
            "touches": touches,
            "library": library if made.when == "teardown" else {},
            "missing": sorted(self.missing.libraries),
            "network": list(dict.fromkeys(running.network)),
            "shares": running.shares,
            "acts": running.acts,
        }
        if not self.tree.kin:
            # What the tree prints while it is asked would bury what is found.
            made.sections.clear()
        expectation = item.stash.get(_EXPECTED_BY, None)
        if data["outcome"] == EXPECTED and expectation is not None:
            before = expectation.differs(str(data["place"]), str(data["message"]))
            if before:
                data["outcome"] = FAIL
                data["message"] = f"{data['message']} (before: {before})"
                made.outcome = "failed"
                made.longrepr = f"fails for another reason than before: {data['message']}"
                del made.wasxfail
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
        if self.tree.kin:
            self._presence.enter_context(target.activate())
        else:
            # What a module decides while it is imported is decided for the device in force.
            forget()
            self._presence.callback(forget)
            self._presence.enter_context(target.activate(packages=(PACKAGE,)))
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
                    if not _of_another_engine(name, running.engine):
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

    def _plain(self, text: str) -> str:
        """A message without this run's own folders, which are others the next time."""
        if self.folder is None:
            return text
        within = re.escape(str(self.folder))
        text = text.replace(f"{self.tree.root}/", "")
        return re.sub(rf"{within}(/tmp\w+)?", "SCRATCH", text)

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


#: Modules of one engine, which a case of all targets cannot have called with the other.
_OF_ENGINE = {
    "torch": (
        "engines.torch.",
        "lm.decoding:",
        "lm.pt:",
        "device.bits:packed_rows",
        "corrections.timbre:",
        "checkpoint.adapters.applying:ModuleAdapters",
        "checkpoint.adapters.applying:has_adapter",
        "checkpoint.adapters.applying:put_on",
        "checkpoint.adapters.applying:set_scale",
        "checkpoint.adapters.applying:take_off",
        "checkpoint.adapters.layers:",
        "checkpoint.adapters.updates:Hadamard.apply",
        "checkpoint.adapters.updates:Kronecker.apply",
        "checkpoint.adapters.updates:LowRank.apply",
        "checkpoint.adapters.updates:LowRank.rank",
        "engines.recent:rounded_up",
        "vae.convolution:folded",
        "vae.windows:chunk_frames_of",
        "checkpoint.pretrained:load_pretrained",
        "device.memory:held_unused",
        "device.memory:peak",
        "device.memory:reset_peak",
        "lm.sampling:Sampling.guide",
        "lm.sampling:Sampling.processors",
        "lm.sampling:gumbel",
    ),
    "mlx": (
        "engines.mlx.",
        "lm.mlx:",
        "lm.mlx_decoding:",
        "lm.mlx_weights:",
        "device.engines:mlx_device",
        "device.memory:mlx_free_and_total",
        "device.policy:DevicePolicy.mlx_device",
    ),
}


def _of_another_engine(row: str, engine: str) -> bool:
    return any(row.startswith(of) for name, of in _OF_ENGINE.items() if name != engine)


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


def _fail(error: BaseException) -> NoReturn:
    """Fail with an error's message alone, which says it all."""
    raise pytest.fail.Exception(str(error), pytrace=False) from None


def _short(frame: traceback.FrameSummary, root: Path) -> str:
    path = Path(frame.filename)
    shown = path.relative_to(root) if path.is_relative_to(root) else path.name
    return f"{shown}:{frame.lineno}"


def _error(call: pytest.CallInfo[None]) -> BaseException | None:
    return call.excinfo.value if call.excinfo is not None else None


def _outcome(made: pytest.TestReport, decided: str) -> str:
    if decided and not (hasattr(made, "wasxfail") or made.passed):
        return decided
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
