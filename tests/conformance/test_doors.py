"""Whatever of the command is run as a module runs it: none does nothing and says all is well."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

import conformance


def doors() -> Iterator[str]:
    """Modules and packages that somebody would run with `python -m`: they have a `main`."""
    for found in pkgutil.walk_packages(conformance.__path__, "conformance."):
        name = found.name.rpartition(".")[2]
        if name in ("cli", "report_cli", "__main__"):
            yield found.name.removesuffix(".__main__")
    yield "conformance"


@pytest.mark.parametrize("module", sorted(set(doors())))
def test_a_wrong_request_is_refused_at_every_door(module: str) -> None:
    """With status 2 and a word about it, as by the installed command."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--no-such-option"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stderr.strip()
