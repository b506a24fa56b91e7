"""Turns what a run recorded into one report: what was refused and where, fallbacks, waits."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from conformance.simulate import limits
from conformance.simulate.machine import GIB, REPORTED_NAME, Machine

if TYPE_CHECKING:
    from conformance.simulate.session import Simulation

Report = dict[str, Any]

COUNTED = {
    "refusals": ("limit", "operator", "place"),
    "fallbacks": ("operator", "place"),
    "transfers": ("direction", "operator", "why", "place"),
    "operators": ("operator",),
}
"""The counted parts of a report, in the order a person reads them, with their fields."""


def collect(simulation: Simulation) -> Report:
    """What a simulation saw so far: counts by operator and place, bytes moved, peak memory."""
    recorder, ledger = simulation.recorder, simulation.core.ledger
    counters: dict[str, Counter[Any]] = {
        "refusals": recorder.refusals,
        "fallbacks": recorder.fallbacks,
        "transfers": recorder.transfers,
        "operators": Counter({(name,): count for name, count in recorder.operators.items()}),
    }
    return {
        **empty(simulation.machine),
        "peak_bytes": ledger.peak,
        "driver_peak_bytes": ledger.driver_peak,
        "transferred_bytes": dict(recorder.transferred),
        **{name: _rows(COUNTED[name], counts) for name, counts in counters.items()},
        "notes": sorted(recorder.notes),
    }


def empty(machine: Machine) -> Report:
    """The report of a run that did nothing on the device."""
    return {
        "device": REPORTED_NAME,
        "simulated": {
            "macos": machine.macos,
            "memory_gb": machine.memory_gb,
            "torch": machine.torch,
        },
        "torch": version("torch"),
        "peak_bytes": 0,
        "driver_peak_bytes": 0,
        "transferred_bytes": {},
        **{name: [] for name in COUNTED},
        "notes": [],
    }


def _rows(fields: tuple[str, ...], counts: Counter[Any]) -> list[dict[str, Any]]:
    return [
        {**dict(zip(fields, key, strict=True)), "count": count}
        for key, count in counts.most_common()
    ]


def merge(reports: Iterable[Report]) -> Report:
    """One report of several processes: counts added, the highest peak kept."""
    parts = list(reports)
    merged = dict(parts[0])
    merged["processes"] = len(parts)
    for name in ("peak_bytes", "driver_peak_bytes"):
        merged[name] = max(part[name] for part in parts)
    moved: Counter[str] = Counter()
    for part in parts:
        moved.update(part["transferred_bytes"])
    merged["transferred_bytes"] = dict(moved)
    for name, fields in COUNTED.items():
        totals: Counter[tuple[str, ...]] = Counter()
        for part in parts:
            for row in part[name]:
                totals[tuple(row[key] for key in fields)] += row["count"]
        merged[name] = _rows(fields, totals)
    merged["notes"] = sorted({note for part in parts for note in part["notes"]})
    return merged


def completed(report: Report, status: int, tests: list[dict[str, Any]]) -> Report:
    """`report` with the program's exit status, its tests, and each refusal's tests and kind."""
    behind: dict[tuple[str, str, str], list[str]] = {}
    for row in tests:
        if row["outcome"] == "failed" and row["limit"]:
            behind.setdefault((row["limit"], row["operator"], row["at"]), []).append(row["test"])
    refusals = [
        {
            **row,
            "mistake": row["limit"] in limits.MISTAKES,
            "tests": behind.get((row["limit"], row["operator"], row["place"]), []),
        }
        for row in report["refusals"]
    ]
    return {**report, "status": status, "tests": tests, "refusals": refusals}


def ending(status: int) -> str | None:
    """How a program ended that did not end well, in a line; None for one that did."""
    if status == 0:
        return None
    if status > 128:
        try:
            name = signal.Signals(status - 128).name
        except ValueError:
            name = f"signal {status - 128}"
        return (
            f"THE RUN WAS KILLED by {name} (exit code {status}): "
            "what it did since its last process ended is not counted here"
        )
    return f"THE RUN FAILED with exit code {status}"


def summary(report: Report) -> str:
    """Lines for the terminal: how it ended, what was refused and where, fallbacks, waits."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    last = ending(report.get("status", 0))
    if last is not None:
        yield last
    operators = sum(row["count"] for row in report["operators"])
    older = report["simulated"].get("torch")
    release = f"{report['torch']} as {older}" if older else report["torch"]
    head = f"{REPORTED_NAME} (macOS {report['simulated']['macos']}, torch {release})"
    if last is not None and not operators:
        yield f"{head}: nothing was recorded on the device before that"
        return
    waits = sum(row["count"] for row in report["transfers"] if row["direction"] == "to host")
    fallbacks = sum(row["count"] for row in report["fallbacks"])
    refused = sum(row["count"] for row in report["refusals"])
    yield (
        f"{head}: {operators} operators, {refused} refused, {fallbacks} fallbacks, "
        f"{waits} waits of the host, peak {report['peak_bytes'] / GIB:.3f} GiB"
    )
    for row in report["refusals"][:10]:
        tests = f", {len(row['tests'])} tests" if row.get("tests") else ""
        whose = "the project's" if row["limit"] in limits.MISTAKES else "the Mac's"
        yield (
            f"  {row['count']:>6}  {row['operator']} refused ({row['limit']}, {whose}{tests}) "
            f"at {row['place']}"
        )
    for row in report["fallbacks"][:5]:
        yield f"  {row['count']:>6}  {row['operator']} ran on the host at {row['place']}"
    for row in report["transfers"][:5]:
        if row["direction"] == "to host":
            yield f"  {row['count']:>6}  {row['operator']} ({row['why']}) at {row['place']}"
