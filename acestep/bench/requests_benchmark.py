"""Thousands of requests made up from the API's own document: `python -m acestep.bench.requests_benchmark`.

schemathesis (the extra `fuzz`) reads the OpenAPI document and sends what it allows and what it
does not, to a service in this process whose worker makes nothing. None may be answered with a
status of 500 or above, and none may take long.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

REQUESTS, LONGEST = 2000, 20.0
_LEFT_OUT = ("/docs", "/openapi.json")


def measure(folder: Path, requests: int) -> tuple[Counter[str], list[str], float]:
    """Send so many requests.

    Returns:
        How often each status came, what must not happen, and the longest answer in seconds.
    """
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st
    from schemathesis.generation.modes import GenerationMode

    from acestep.server.app import create_app
    from acestep.server.options import Limits, ServerOptions
    from acestep.server.service import Service

    options = ServerOptions(models=("demo",), devices=("cpu",), data_dir=folder)
    # What waits for a worker ends at once, as nobody works.
    options = ServerOptions(**{**vars(options), "limits": Limits(waiting=20, heartbeat=0.05)})
    service = Service(options)
    app = create_app(options, service)
    schema = schemathesis.openapi.from_asgi("/openapi.json", _Named(app))
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    operations = [made.ok() for made in schema.get_all_operations()]
    cases = st.one_of(
        [one.as_strategy(generation_mode=mode) for one in operations for mode in modes]
    )
    statuses, problems, longest, sent = Counter[str](), list[str](), 0.0, 0

    @seed(1)
    @settings(
        max_examples=requests, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def send(case: Any) -> None:
        nonlocal longest, sent
        began = time.monotonic()
        _empty(service)
        answer = case.call(headers={"host": "127.0.0.1"})
        took = time.monotonic() - began
        longest, sent = max(longest, took), sent + 1
        statuses[str(answer.status_code)] += 1
        if answer.status_code >= 500 and answer.status_code != 503:
            problems.append(f"{case.method} {case.path}: {answer.status_code} {answer.text[:200]}")
        if took > LONGEST:
            problems.append(f"{case.method} {case.path} took {took:.1f} s")

    # What the first request would wait for is no matter of requests.
    importlib.import_module("acestep.song.params")
    # A chat or a planner's endpoint waits for its task; closed, the line says that it is over.
    service.line.close()
    send()
    service.close()
    return statuses, problems, longest


def _empty(service: Any) -> None:
    """Have the queue not fill up, so that requests are judged and not turned away."""
    while (task := service.store.take()) is not None:
        service.store.fail(task.id, "made up")


class _Named:
    """The application, asked under the name that it is served under."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            others = [(k, v) for k, v in scope["headers"] if k != b"host"]
            scope = {**scope, "headers": [(b"host", b"127.0.0.1"), *others]}
        await self.app(scope, receive, send)


def main() -> int:
    """Run with what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        statuses, problems, longest = measure(Path(folder), chosen.requests)
    _say(f"{sum(statuses.values())} requests in {time.monotonic() - began:.0f} s, the longest "
         f"{longest:.2f} s: {dict(sorted(statuses.items()))}")  # fmt: skip
    _say(f"problems: {problems or 'none'}")
    return 1 if problems else 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
