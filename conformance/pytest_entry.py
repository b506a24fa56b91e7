"""Lets the installed suite be run by its name, and leaves every other run of pytest alone.

pytest loads this in each project beside which the suite is installed: it declares no option
(another project has a `--device` of its own) and imports nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parent / "suite"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """`pytest conformance` means the installed suite where no folder of that name is."""
    if "conformance" in args and not Path("conformance").exists():
        early_config.pluginmanager.import_plugin("conformance.plugin")
        args[args.index("conformance")] = str(SUITE)
