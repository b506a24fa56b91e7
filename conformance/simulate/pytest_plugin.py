"""Pytest on the simulated device: `--mps-sim` for a whole run, a fixture and marker for a test."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance.simulate import hook, outcomes
from conformance.simulate.known import Failure, Known
from conformance.simulate.machine import REPORTED_NAME, Machine
from conformance.simulate.traces import trimmed

if TYPE_CHECKING:
    from conformance.simulate.session import Simulation

_NAME = "mps-sim run"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options with a name of their own, so that no project's can be the same."""
    group = parser.getgroup("mps-sim", "the simulated MPS device")
    group.addoption(
        "--mps-sim",
        action="store_true",
        help="run everything, from before collection, with a device that says it is mps",
    )
    group.addoption(
        "--mps-sim-default",
        action="store_true",
        help="with --mps-sim: also make it the default device of torch",
    )
    group.addoption("--mps-sim-macos", default="15.5", help="macOS version to stand for (15.5)")
    group.addoption("--mps-sim-torch", help="an older torch to stand for, such as 2.12")
    group.addoption(
        "--mps-sim-start",
        choices=("spawn", "fork"),
        default="spawn",
        help="how workers are started where nothing says it: as on macOS (spawn), or fork",
    )
    group.addoption(
        "--mps-sim-known",
        metavar="FILE",
        help="failures known on the device, one `operator<TAB>test` a line; strict both ways",
    )
    group.addoption(
        "--mps-sim-write",
        action="store_true",
        help="write the failures of this run to the file of --mps-sim-known, and shrink it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Adds the device before any file of the project is imported."""
    options = early_config.known_args_namespace
    if not options.mps_sim:
        return
    try:
        Machine(options.mps_sim_macos, 16, torch=options.mps_sim_torch)
    except ValueError as error:
        raise pytest.UsageError(f"--mps-sim: {error}") from error
    undone = contextlib.ExitStack()
    early_config.stash[_UNDONE] = undone
    if hook.OPTIONS_VARIABLE not in os.environ:
        machine = {"macos": options.mps_sim_macos, "torch": options.mps_sim_torch}
        undone.callback(hook.hand_down({**machine, "start": options.mps_sim_start}))
    undone.callback(hook.ensure())
    if options.mps_sim_default:
        import torch

        torch.set_default_device("mps")
        undone.callback(torch.set_default_device, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves the process as it was, for a program that runs pytest and goes on."""
    config.stash.get(_UNDONE, contextlib.ExitStack()).close()


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and follows the tests where the whole run is simulated."""
    config.addinivalue_line(
        "markers",
        "mps_sim(macos='15.5', memory_gb=16, fallback=None, ratchet=False): run this test on a "
        "simulated MPS device",
    )
    config.addinivalue_line(
        "filterwarnings", "default::conformance.simulate.record.SimulationWarning"
    )
    if config.getoption("mps_sim") or hook.OPTIONS_VARIABLE in os.environ:
        config.pluginmanager.register(Run(config), _NAME)
    elif config.getoption("mps_sim_known"):
        raise pytest.UsageError("--mps-sim-known needs a simulated run: add --mps-sim")


@pytest.fixture
def mps_sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    """A simulation around the test, with the settings of its `mps_sim` marker, if it has one.

    In a run that is simulated as a whole it is the run's, and fails where the marker asks for
    another machine than that.
    """
    from conformance.simulate.session import active, mps

    marker = request.node.get_closest_marker("mps_sim")
    settings: dict[str, Any] = dict(marker.kwargs) if marker else {}
    under_way = active()
    if under_way is None:
        with mps(**settings) as simulation:
            yield simulation
        return
    for name, value in settings.items():
        if getattr(under_way.machine, name) != value:
            pytest.fail(
                f"the marker asks for {name}={value!r}, and the run as a whole simulates "
                f"{name}={getattr(under_way.machine, name)!r}",
                pytrace=False,
            )
    yield under_way


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test marked `mps_sim` the fixture of that name."""
    for item in items:
        names = getattr(item, "fixturenames", None)
        if names is not None and item.get_closest_marker("mps_sim") and "mps_sim" not in names:
            names.insert(0, "mps_sim")


class Run:
    """Follows the tests of a run whose processes all have the device."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.path = Path(known) if (known := config.getoption("mps_sim_known")) else None
        self.rewrites = bool(config.getoption("mps_sim_write"))
        self.rows: dict[str, outcomes.Row] = {}
        self.known = Known({})
        if self.rewrites and self.path is None:
            raise pytest.UsageError("--mps-sim-write needs --mps-sim-known FILE")
        if self.path is not None and (self.path.exists() or not self.rewrites):
            try:
                self.known = Known.read(self.path)
            except (OSError, ValueError) as error:
                raise pytest.UsageError(f"--mps-sim-known: {error}") from error

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Counts from zero at each test."""
        recorder = self._recorder()
        if recorder is not None:
            before = recorder.operators.total(), recorder.asked, len(recorder.met)
            item.stash[_BEFORE] = before
        return (yield)

    def _recorder(self) -> Any:
        if "torch" not in sys.modules:
            return None
        from conformance.simulate.session import active

        simulation = active()
        return None if simulation is None else simulation.recorder

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Folds our frames away, notes what the test did, and compares it with what is known."""
        if call.excinfo is not None and not os.environ.get(hook.DEBUG_VARIABLE):
            error = call.excinfo.value
            error.__traceback__ = trace = trimmed(error.__traceback__)
            if trace is not None:
                call.excinfo = pytest.ExceptionInfo.from_exc_info((type(error), error, trace))
        report = yield
        row = self._row(item, call, report)
        report.mps_sim = row  # type: ignore[attr-defined]
        if not self.rewrites and not hasattr(report, "wasxfail"):
            self._judge(report, row)
        return report

    def _row(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> outcomes.Row:
        recorder = self._recorder()
        operators, asked, met = 0, 0, []
        if recorder is not None:
            before = item.stash.get(_BEFORE, (0, 0, 0))
            operators = recorder.operators.total() - before[0]
            asked, met = recorder.asked - before[1], list(recorder.met[before[2] :])
        found = Failure("")
        if report.failed and call.excinfo is not None:
            found = outcomes.failure(call.excinfo.typename, str(call.excinfo.value), met)
        parameters = getattr(item, "callspec", None)
        values = parameters.params.values() if parameters is not None else ()
        places = [place for code, _, place in met if code == found.limit]
        return {
            "test": item.nodeid,
            "phase": report.when,
            "outcome": report.outcome,
            "operators": operators,
            "asked": bool(asked) or outcomes.asks_for_device(values),
            "exception": found.exception,
            "limit": found.limit,
            "operator": found.operator,
            "mistake": found.limit in _mistakes() if found.limit else False,
            "place": self._place(places[-1]) if places else "",
            "at": places[-1] if places else "",
        }

    def _place(self, place: str) -> str:
        root = str(self.config.rootpath) + os.sep
        return place.removeprefix(root)

    def _judge(self, report: pytest.TestReport, row: outcomes.Row) -> None:
        """A known failure is an expected one; what is known and comes otherwise fails."""
        if row["test"] not in self.known.reasons or report.skipped:
            return
        if report.passed and report.when != "call":
            return
        found = Failure(row["exception"], row["limit"], row["operator"])
        wrong = self.known.judged(row["test"], None if report.passed else found)
        if wrong is None:
            report.outcome, row["outcome"] = "skipped", "known"
            report.wasxfail = f"known on {REPORTED_NAME}: {self.known.reasons[row['test']]}"
        elif report.passed:
            report.outcome = row["outcome"] = "failed"
            row["exception"] = "passed, and is known to fail"
            report.longrepr = f"[{REPORTED_NAME}] {wrong} ({self.path})"
        else:
            report.sections.append((f"{REPORTED_NAME}, {self.path}", wrong))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gathers rows, in the process that prints, of the workers' tests too."""
        row = getattr(report, "mps_sim", None)
        if row is None:
            return
        kept = self.rows.get(row["test"])
        if kept is None or report.failed or (report.when == "call" and kept["outcome"] != "failed"):
            self.rows[row["test"]] = row

    def pytest_report_header(self) -> str:
        """Says that no Mac is at work."""
        return f"{REPORTED_NAME}: every process of this run has a simulated MPS device"

    def pytest_sessionfinish(self) -> None:
        """Writes the file of known failures, and the rows for the command's report."""
        if hasattr(self.config, "workerinput"):
            return
        if self.rewrites and self.path is not None:
            failed = {
                test: Failure(row["exception"], row["limit"], row["operator"])
                for test, row in self.rows.items()
                if row["outcome"] == "failed"
            }
            ran = [test for test, row in self.rows.items() if row["outcome"] != "skipped"]
            self.known.updated(ran, failed).write(self.path)
        folder = os.environ.get(hook.REPORTS_VARIABLE)
        if folder and self.rows:
            path = Path(folder) / f"{os.getpid()}.tests"
            path.write_text(json.dumps(list(self.rows.values())), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What failed on the device, by operator, and what ran nothing there."""
        terminalreporter.section(f"{REPORTED_NAME}: no Mac was at work")
        for line in outcomes.summary(list(self.rows.values())):
            terminalreporter.line(line)


def _mistakes() -> frozenset[str]:
    from conformance.simulate.limits import MISTAKES

    return MISTAKES


_UNDONE: pytest.StashKey[contextlib.ExitStack] = pytest.StashKey()
_BEFORE: pytest.StashKey[tuple[int, int, int]] = pytest.StashKey()
