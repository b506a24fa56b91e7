"""What the folder promises to the rest of the package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import acestep

PACKAGE = Path(acestep.__file__).parent
BACKEND = re.compile(r"(cuda|mps|hip|rocm)(:\d+)?", re.IGNORECASE)


def names_of_backends(source: str) -> list[str]:
    """String literals of a module that are a backend's name, with or without an index."""
    literals = (
        node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)
    )
    return [text for text in literals if isinstance(text, str) and BACKEND.fullmatch(text)]


def test_only_this_folder_names_a_backend() -> None:
    named = {
        str(file.relative_to(PACKAGE)): found
        for file in sorted(PACKAGE.rglob("*.py"))
        if (found := names_of_backends(file.read_text(encoding="utf-8")))
    }
    assert {Path(name).parent for name in named} == {Path("device")}, named


def test_a_planted_name_is_seen() -> None:
    assert names_of_backends('if tensor.device.type == "cuda":\n    pass\n') == ["cuda"]
    assert names_of_backends('place = "mps:0"  # not "cuda"\n') == ["mps:0"]
    assert names_of_backends('"""Runs on cuda."""\n') == []


def test_importing_it_does_not_import_torch() -> None:
    """The command line prints its help without PyTorch."""
    code = "import sys, acestep.device; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
