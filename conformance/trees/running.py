"""Asks one checkout the facts in a process of its own, and reads what that found."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from conformance.pytest_entry import SUITE
from conformance.report import Report, ReportError, from_json
from conformance.trees.scratch import children


def asked(name: str, tree: Path, device: str, folder: Path) -> Report | None:
    """The report of one run; None where there is none, which is said on stderr.

    Args:
        name: what the checkout is called; its report is `folder/name.json`.
        tree: the checkout, which nothing is written into.
        device: targets, as `--device` takes them.
        folder: where the report goes, as JSON and as a page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = (folder / f"{name}.json").absolute()
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", str(SUITE), "-p", "conformance.plugin", "-q"]
    command += [f"--tree={tree}", f"--device={device}", "-p", "no:cacheprovider"]
    command += [f"--rootdir={folder}", f"--conformance-report={report}"]
    package = str(SUITE.parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    started = time.monotonic()
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        children.append(run)
        try:
            said, _ = run.communicate()
        finally:
            children.remove(run)
            run.kill()
    sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s\n")
    try:
        read = from_json(report)
    except ReportError:
        sys.stderr.write(f"{name}: no report; {said[-2000:]}\n")
        return None
    from conformance.report_pages import write

    write(read, report.with_suffix(".html"))
    return read
