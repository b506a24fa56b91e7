"""Turns what a run recorded into JSON and a page to read: what would be slow on a real Mac."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from conformance.simulate.device import GIB, REPORTED_NAME
from conformance.simulate.session import Simulation

Report = dict[str, Any]

_HEADINGS = {
    "fallbacks": ("Operators run on the host for want of a kernel", ("operator", "place")),
    "transfers": ("Transfers and waits", ("direction", "operator", "why", "place")),
    "operators": ("Operators used", ("operator",)),
}


def collect(simulation: Simulation) -> Report:
    """What a simulation saw so far: counts by operator and place, bytes moved, peak memory."""
    recorder, ledger = simulation.recorder, simulation.core.ledger
    machine = simulation.machine
    return {
        "device": REPORTED_NAME,
        "simulated": {"macos": machine.macos, "memory_gb": machine.memory_gb},
        "torch": torch.__version__,
        "peak_bytes": ledger.peak,
        "driver_peak_bytes": ledger.driver_peak,
        "transferred_bytes": dict(recorder.transferred),
        "operators": [
            {"operator": name, "count": count} for name, count in recorder.operators.most_common()
        ],
        "fallbacks": [
            {"operator": name, "place": place, "count": count}
            for (name, place), count in recorder.fallbacks.most_common()
        ],
        "transfers": [
            {
                "direction": direction,
                "operator": operator,
                "why": why,
                "place": place,
                "count": count,
            }
            for (direction, operator, why, place), count in recorder.transfers.most_common()
        ],
        "notes": sorted(recorder.notes),
    }


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
    for name, (_, fields) in _HEADINGS.items():
        totals: Counter[tuple[str, ...]] = Counter()
        for part in parts:
            for row in part[name]:
                totals[tuple(row[key] for key in fields)] += row["count"]
        merged[name] = [
            {**dict(zip(fields, key, strict=True)), "count": count}
            for key, count in totals.most_common()
        ]
    merged["notes"] = sorted({note for part in parts for note in part["notes"]})
    return merged


def write(report: Report, path: Path) -> None:
    """Writes `report` to a .json or .html file. Raises ValueError for any other suffix."""
    if path.suffix == ".json":
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    elif path.suffix in (".html", ".htm"):
        path.write_text(page(report), encoding="utf-8")
    else:
        raise ValueError(f"cannot write a report to {path.name}; name it *.json or *.html")


def summary(report: Report) -> str:
    """A few lines for the terminal."""
    waits = sum(row["count"] for row in report["transfers"] if row["direction"] == "to host")
    fallbacks = sum(row["count"] for row in report["fallbacks"])
    lines = [
        f"{REPORTED_NAME} (macOS {report['simulated']['macos']}, torch {report['torch']}): "
        f"{sum(row['count'] for row in report['operators'])} operators, {fallbacks} fallbacks, "
        f"{waits} waits of the host, peak {report['peak_bytes'] / GIB:.3f} GiB"
    ]
    lines += [
        f"  {row['count']:>6}  {row['operator']} ({row['why']}) at {row['place']}"
        for row in report["transfers"][:5]
        if row["direction"] == "to host"
    ]
    return "\n".join(lines)


def page(report: Report) -> str:
    """The report as one HTML page, with nothing loaded from elsewhere."""
    parts = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{REPORTED_NAME} report</title>",
        "<style>body{font:15px system-ui;margin:2em auto;max-width:70em}"
        "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;"
        "border-bottom:1px solid #ccc}</style>",
        f"<h1>What would be slow on a real Mac</h1><pre>{html.escape(summary(report))}</pre>",
        "<p>Simulated on the CPU: this counts what the program asked for; it measures no Mac.</p>",
    ]
    parts += [f"<p>{html.escape(note)}</p>" for note in report["notes"]]
    for name, (heading, fields) in _HEADINGS.items():
        rows = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(str(row[key]))}</td>" for key in ("count", *fields))
            + "</tr>"
            for row in report[name]
        )
        head = "".join(f"<th>{key}</th>" for key in ("count", *fields))
        parts.append(f"<h2>{heading}</h2><table><tr>{head}</tr>{rows}</table>")
    return "\n".join(parts) + "\n"
