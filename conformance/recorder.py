"""Gathers the results of a run, from this process and from xdist's workers, into a report."""

from __future__ import annotations

import platform
import time
from importlib import metadata
from typing import Any

import pytest

from conformance.report import ABSENT, BLOCKED, BROKEN, FAIL, Case, Machine, Part, Report
from conformance.targets import Target
from conformance.tree import Tree

_SHOWN = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pytest")


class Recorder:
    """The cases of one run as they finish."""

    def __init__(self, tree: Tree, targets: list[Target]) -> None:
        self.tree, self.targets = tree, targets
        self.cases: dict[tuple[str, str], Case] = {}
        self._started = time.time()

    def header(self) -> list[str]:
        """The lines that open a run."""
        versions = _versions()
        devices = ", ".join(f"{t.name} ({t.detail})" for t in self.targets)
        own = "this repository's own" if self.tree.own else "another tree"
        return [
            f"conformance: device {devices}",
            f"conformance: torch {versions.get('torch', '?')}, {_system()}",
            f"conformance: tree under test {self.tree.shown} ({own})",
        ]

    def add(self, report: pytest.TestReport) -> None:
        """Take in one phase of one case; a case is as bad as its worst phase."""
        for key, data in report.user_properties:
            if key == "conformance" and isinstance(data, dict):
                self._add_phase(report, data)

    def report(self) -> Report:
        """The run so far."""
        started = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(self._started))
        machine = Machine(
            os=_system(),
            python=platform.python_version(),
            versions=_versions(),
            targets={t.name: t.detail for t in self.targets},
            tree=str(self.tree.shown),
            started=started,
            kin=self.tree.kin,
            seconds=round(time.time() - self._started, 1),
        )
        cases = sorted(self.cases.values(), key=lambda case: (case.name, case.target))
        return Report([Part(machine, cases)])

    def _add_phase(self, report: pytest.TestReport, data: dict[str, Any]) -> None:
        # pytest hands each phase the properties of the phases before it as well.
        if data.get("phase", report.when) != report.when:
            return
        key = (data["name"], data["target"])
        seconds = round(report.duration, 3)
        known = self.cases.get(key)
        fresh = Case(**{k: v for k, v in data.items() if k != "phase"}, seconds=seconds)
        if known is None:
            self.cases[key] = fresh
            return
        known.seconds = round(known.seconds + seconds, 3)
        known.library = known.library | fresh.library
        known.absent_rows, known.missing = fresh.absent_rows, fresh.missing
        known.network = list(dict.fromkeys(known.network + fresh.network))
        known.shares, known.acts = fresh.shares or known.shares, fresh.acts or known.acts
        if known.outcome == FAIL:
            # What failed first says why; a teardown that fails as well follows from it.
            return
        decided = known.outcome in (ABSENT, BLOCKED, BROKEN) or report.when == "teardown"
        if fresh.outcome == FAIL or not decided:
            for name in ("outcome", "message", "place", "touches"):
                setattr(known, name, getattr(fresh, name))


def _versions() -> dict[str, str]:
    found = {}
    for name in _SHOWN:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"
