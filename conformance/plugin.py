"""The pytest plugin of the suite: its options, its target fixture, and the rules every case obeys."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from conformance import pytest_entry, report_pages
from conformance.expect import ExpectError
from conformance.expect import read as read_expectations
from conformance.expect import write as write_expectations
from conformance.pytest_entry import SUITE
from conformance.recorder import Recorder
from conformance.report import ReportError
from conformance.session import PATIENCE, Session
from conformance.targets import CHOICES, Target, TargetError, choose, find
from conformance.tree import Tree, TreeError, install, locate
from conformance.trees import scratch, shield
from conformance.trees.asking import Asking, Told
from conformance.trees.surface import Share

# What a library draws while it loads says nothing of a case; the tree's own bars stay. Libraries
# read this when they are imported, after this module.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# For who loads this by `-p` where no entry point announces the suite.
pytest_load_initial_conftests = pytest_entry.pytest_load_initial_conftests
#: The files of the suite whose cases any tree can be asked.
FOR_ANY_TREE = frozenset({"test_facts.py", "test_foreign.py"})
_SESSION = pytest.StashKey[Session]()
_RECORDER = pytest.StashKey[Recorder]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the suite's options."""
    group = parser.getgroup("conformance", "conformance of an acestep tree")
    group.addoption(
        "--device",
        action="append",
        metavar="NAME[,NAME]",
        help=f"targets to judge on: {', '.join(CHOICES)} (default: auto)",
    )
    group.addoption("--tree", metavar="PATH", help="another checkout of ACE-Step or a fork")
    group.addoption("--expect", metavar="FILE", help="cases that must fail, strict both ways")
    group.addoption(
        "--write-expect", metavar="FILE", help="write what fails now as a file for --expect"
    )
    group.addoption(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=PATIENCE,
        help="what a case may take on another tree (default: %(default)g)",
    )
    group.addoption(
        "--conformance-report", metavar="FILE", help="write the report as .md, .json or .html"
    )


def register_markers(config: pytest.Config) -> None:
    """Tell pytest the markers of the cases."""
    for line in (
        "covers(*rows): what a case of the suite covers",
        "names_cuda(why): the case asks the tree about CUDA, which may then name it",
        "lists_devices(why): the case asks for all devices; CUDA may be asked where there is one",
        "asks_a_fact: the case decides one fact by itself; what else is touched is A3's to tell",
    ):
        config.addinivalue_line("markers", line)


def pytest_configure(config: pytest.Config) -> None:
    """Decide on targets and tree before anything is collected.

    Raises:
        pytest.UsageError: an absent device, a path without a tree, an unreadable file.
    """
    register_markers(config)
    if not _asked_for(config):
        return
    try:
        targets = choose(config.getoption("device") or ["auto"])
        tree = locate(config.getoption("tree"))
        expect = config.getoption("expect")
        expectations = read_expectations(Path(expect)) if expect else []
        if path := config.getoption("conformance_report"):
            report_pages.check_format(Path(path))
    except (TargetError, TreeError, ExpectError, ReportError) as error:
        raise pytest.UsageError(str(error)) from None
    _share_processors(config)
    folder = None
    if not tree.kin:
        # Before any library reads them.
        os.environ.update(shield.OFFLINE)
        if find()["mps-sim"].present:
            # It learns torch's own functions when it is imported, which no tripwire may then watch.
            importlib.import_module("conformance.simulate.session")
        folder = scratch.begin()
        copied = locate(shield.copy_of(tree.root, folder))
        tree = Tree(copied.root, own=False, origin=tree.root)
        _leave_telling_to_the_report(config)
    install(tree)
    config.stash[_SESSION] = Session(tree, targets, expectations)
    config.stash[_SESSION].folder = folder
    config.stash[_SESSION].patience = config.getoption("patience")
    config.stash[_RECORDER] = Recorder(tree, targets)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Device, torch, operating system and tree under test."""
    recorder = config.stash.get(_RECORDER, None)
    return recorder.header() if recorder else []


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """The device that the case is judged on."""
    chosen: Target = request.param
    return chosen


@pytest.fixture(scope="session")
def tree(pytestconfig: pytest.Config) -> Tree:
    """The tree under test."""
    return pytestconfig.stash[_SESSION].tree


@pytest.fixture
def ask(pytestconfig: pytest.Config, target: Target) -> Iterator[Asking]:
    """What a fact is asked of: the tree on the case's target, with a folder for files."""
    session = pytestconfig.stash[_SESSION]
    with tempfile.TemporaryDirectory(dir=session.folder) as folder:
        yield Asking(session.tree, target, Path(folder))


@pytest.fixture
def tell(pytestconfig: pytest.Config) -> Callable[[Told], None]:
    """Notes how a fact holds, for the report."""
    return pytestconfig.stash[_SESSION].tell


@pytest.fixture
def note_shares(pytestconfig: pytest.Config) -> Callable[[list[Share], list[str]], None]:
    """Notes what was entered of another tree's functions, for the report."""
    return pytestconfig.stash[_SESSION].note_shares


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of another surface than ours, only the cases that find their way about are asked."""
    session = config.stash.get(_SESSION, None)
    if session is None or session.tree.kin or SUITE not in collection_path.parents:
        return None
    asked = collection_path.name in FOR_ANY_TREE or not collection_path.name.startswith("test_")
    return None if asked else True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case on each target."""
    session = metafunc.config.stash.get(_SESSION, None)
    if session and _of_suite(metafunc.definition) and "target" in metafunc.fixturenames:
        metafunc.parametrize(
            "target",
            session.targets,
            ids=[target.name for target in session.targets],
            indirect=True,
            scope="session",
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is expected to fail.

    Raises:
        pytest.UsageError: an expectation matches no case.
    """
    session = config.stash.get(_SESSION, None)
    if session is None:
        return
    stale = session.expect(item for item in items if _of_suite(item))
    if stale:
        lines = ", ".join(f"line {e.line} ({e.pattern})" for e in stale)
        raise pytest.UsageError(f"--expect={config.getoption('expect')}: no case matches {lines}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Make the case's target present, and arm the tripwire from setup to teardown."""
    session = item.config.stash.get(_SESSION, None)
    if session is None or not _of_suite(item):
        return (yield)
    with session.case(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Report what the tree lacks as absent, also when a fixture finds it."""
    session = item.config.stash.get(_SESSION, None)
    with session.outcomes(item) if session and _of_suite(item) else nullcontext():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """After the case: nothing it did may have touched CUDA, and it called what it declares."""
    session = item.config.stash.get(_SESSION, None)
    if session is None or not _of_suite(item):
        return (yield)
    with session.outcomes(item):
        yield
        session.verify(item)
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """What is undone at the end may not touch CUDA either."""
    yield
    session = item.config.stash.get(_SESSION, None)
    if session and _of_suite(item):
        session.verify_teardown(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach to pytest's report what the matrix needs; it travels from xdist's workers."""
    made = yield
    session = item.config.stash.get(_SESSION, None)
    if session and _of_suite(item):
        session.annotate(item, call, made)
    return made


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect results, those of xdist's workers included."""
    config = _current_config()
    if config is not None and not hasattr(config, "workerinput"):
        config.stash[_RECORDER].add(report)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember the run for hooks that are given no configuration."""
    if _RECORDER in session.config.stash:
        _running.append(session.config)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the last target, and write the report file."""
    config = session.config
    if (state := config.stash.get(_SESSION, None)) is not None:
        state.close()
    path = config.getoption("conformance_report", None)
    recorder = config.stash.get(_RECORDER, None)
    if recorder is None or hasattr(config, "workerinput"):
        return
    try:
        if path:
            report_pages.write(recorder.report(), Path(path))
        if frozen := config.getoption("write_expect", None):
            write_expectations(recorder.report(), Path(frozen))
    except (ReportError, ExpectError) as error:
        raise pytest.UsageError(str(error)) from None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the matrix."""
    recorder = config.stash.get(_RECORDER, None)
    if recorder and recorder.cases:
        terminalreporter.section("conformance")
        for line in report_pages.text_lines(recorder.report()):
            terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Forget the run."""
    if config in _running:
        _running.remove(config)
    session = config.stash.get(_SESSION, None)
    if session is not None and session.folder is not None:
        scratch.end(session.folder)


_running: list[pytest.Config] = []


def _current_config() -> pytest.Config | None:
    return _running[-1] if _running else None


def _share_processors(config: pytest.Config) -> None:
    """Give each of xdist's workers its part of the processors, and children the same.

    Workers that each start a thread for every processor spend their time waiting for each
    other.
    """
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)
    # Cases start processes after tokenizers has threads, about which it would warn.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _leave_telling_to_the_report(config: pytest.Config) -> None:
    """Another tree's failures are told once, by fact and place, unless more is asked for."""
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "no"
    if config.option.reportchars == "fE":
        config.option.reportchars = ""


def _asked_for(config: pytest.Config) -> bool:
    """Whether this run is of the suite: it is named, or one of the suite's options is used."""
    if config.getoption("tree") or config.getoption("device"):
        return True
    for argument in config.args:
        path = Path(argument.partition("::")[0]).absolute()
        if path == SUITE or SUITE in path.parents or path in (SUITE.parent, SUITE.parent.parent):
            return True
    return False


def _of_suite(node: Any) -> bool:
    path = getattr(node, "path", None)
    return path is not None and SUITE in Path(path).parents
