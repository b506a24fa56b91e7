"""What each test of a run did on the device, and the summary of it that a person reads first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from conformance.simulate.known import Failure
from conformance.simulate.machine import BACKEND, REPORTED_NAME

_LIMIT = re.compile(r"simulated failure '([\w-]+)'")
_OPERATOR = re.compile(r"operator '(aten::[\w.]+|[\w]+::[\w.]+)'")
_MOST = 20
"""So many tests are named in the terminal; reports name them all."""

Row = dict[str, Any]


def failure(exception: str, text: str, refusals: Iterable[tuple[str, str, str]]) -> Failure:
    """How a test failed, from its exception, its message and the limits it met.

    `refusals` are limit, operator and place, in the order they were met.
    """
    found = _LIMIT.search(text)
    if found is None:
        return Failure(exception)
    limit = found.group(1)
    named = _OPERATOR.search(text)
    met = [operator for code, operator, _ in refusals if code == limit]
    return Failure(exception, limit, named.group(1) if named else met[-1] if met else "")


def asks_for_device(values: Iterable[object]) -> bool:
    """Whether a test's parameters name the device, as text or as a torch.device."""
    return any(str(value) in (BACKEND, f"{BACKEND}:0") for value in values)


def kind(row: Row) -> str:
    """Whose a failed test's failure is, in words."""
    if not row["limit"]:
        return "an error of the project's own, for no limit was met"
    return "an error of the project" if row["mistake"] else "a limit of the Mac"


def groups(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Failed tests by what they met, most tests first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["outcome"] == "failed":
            found[f"{row['operator'] or row['exception']} ({row['limit'] or 'no limit'})"].append(
                row
            )
    return sorted(found.items(), key=lambda entry: (-len(entry[1]), entry[0]))


def idle(rows: Iterable[Row]) -> list[str]:
    """Tests that passed, asked for the device and ran no operator on it: they showed nothing."""
    return [
        row["test"]
        for row in rows
        if row["outcome"] == "passed" and row["asked"] and not row["operators"]
    ]


def summary(rows: list[Row]) -> Iterator[str]:
    """Lines for the terminal: what failed, whose it is and where, then what showed nothing."""
    for name, failed in groups(rows):
        yield f"{len(failed):>6}  {name}: {kind(failed[0])}"
        places = sorted({row["place"] for row in failed if row["place"]})
        for place in places[:3]:
            yield f"        at {place}"
        if len(places) > 3:
            yield f"        and {len(places) - 3} places more"
        yield f"        {failed[0]['test']}" + (" and others" if len(failed) > 1 else "")
    nothing = idle(rows)
    if nothing:
        yield f"{len(nothing)} passed, asked for the device and ran no operator on it:"
        yield from (f"        {test}" for test in nothing[:_MOST])
        if len(nothing) > _MOST:
            yield f"        and {len(nothing) - _MOST} more"
    known = sum(1 for row in rows if row["outcome"] == "known")
    if known:
        yield f"{known} failed as they are known to"
    ran = sum(1 for row in rows if row["operators"])
    yield f"{ran} of {len(rows)} tests ran operators on {REPORTED_NAME}"
