"""Reports of a scan: one module a format, loaded when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from conformance.scan.findings import Finding

#: A reporter turns sorted findings into the whole output, line ends included.
Reporter = Callable[[Sequence[Finding]], str]

_PLACES = {
    "concise": ("text", "concise"),
    "full": ("text", "full"),
    "json": ("json_", "report"),
    "sarif": ("sarif", "report"),
    "github": ("github", "report"),
    "junit": ("junit", "report"),
}


def reporter(name: str) -> Reporter:
    """The reporter of a format; raises KeyError for one that does not exist."""
    module, function = _PLACES[name]
    loaded = importlib.import_module(f"conformance.scan.answering.report.{module}")
    found: Reporter = getattr(loaded, function)
    return found
