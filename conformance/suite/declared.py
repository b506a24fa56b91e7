"""What all cases of the suite declare to cover, whichever of them a run collects."""

from __future__ import annotations

import importlib
import pkgutil

import conformance.suite as suite
from conformance.entrypoints import declared


def declared_by_suite() -> list[str]:
    """Everything that the cases of the suite declare, whether or not they were collected."""
    for module in pkgutil.iter_modules(suite.__path__):
        if module.name.startswith("test_"):
            importlib.import_module(f"{suite.__name__}.{module.name}")
    return declared()
