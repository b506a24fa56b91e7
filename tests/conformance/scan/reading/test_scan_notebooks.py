"""Notebooks: cells read as one program, places given in the file and in the cell."""

from __future__ import annotations

import json

import pytest

from conformance.scan.findings import Finding
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES


def notebook(*cells: str, kind: str = "code") -> bytes:
    content = {
        "cells": [
            {"cell_type": kind, "source": cell.splitlines(keepends=True), "outputs": []}
            for cell in cells
        ],
        "nbformat": 4,
    }
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def scan(data: bytes) -> list[Finding]:
    return analyse("demo.ipynb", data, RULES)


def test_names_reach_from_cell_to_cell_and_lines_are_the_files() -> None:
    data = notebook("import torch as t\nx = 'é'", "%time\n!nvidia-smi\nt.cuda.synchronize()\n")
    (finding,) = scan(data)
    assert (finding.code, finding.cell, finding.cell_line) == ("DEV102", 2, 3)
    assert b"t.cuda.synchronize()" in data.split(b"\n")[finding.line - 1]


def test_a_line_behind_long_outputs_is_found() -> None:
    content = json.loads(notebook("import torch", "x", "torch.cuda.synchronize()"))
    content["cells"][1]["outputs"] = [{"text": [f"step {number}" for number in range(3000)]}]
    data = json.dumps(content, indent=1).encode()
    (finding,) = scan(data)
    assert data.split(b"\n")[finding.line - 1].strip() == b'"torch.cuda.synchronize()"'


def test_a_broken_cell_does_not_hide_the_others() -> None:
    found = scan(notebook("import torch", "def (", "torch.cuda.synchronize()", "await f()"))
    assert [(f.code, f.cell) for f in found] == [("DEV000", 2), ("DEV102", 3)]


def test_other_languages_and_prose_are_not_code() -> None:
    assert scan(notebook("%%bash\npython -c 'torch.cuda.synchronize()'")) == []
    assert scan(notebook("torch.cuda.synchronize()", kind="markdown")) == []


@pytest.mark.parametrize(
    "cell",
    [
        "!pip install a \\\n  b \\\n  c\nSYNC",
        "if x:\n    %cd folder\nSYNC",
        "if x:\n    !ls\nelse:\n    SYNC",
        "files = !ls\nSYNC",
        "a, b = %sx ls\nSYNC",
        "torch.zeros?\nobj?\nobj??\n?obj\nSYNC",
        "%env A=1\nSYNC",
        "cd some-folder\nSYNC",
        "pip install -q a\nSYNC",
        "%time SYNC",
        "%timeit -n 10 SYNC",
        "for f in files:\n    !cat {f} \\\n      more\n    SYNC",
        "show('''A picture:\n![one](a.jpg)''')\nSYNC",
    ],
)
def test_what_is_ipythons_is_no_syntax_error(cell: str) -> None:
    found = scan(notebook("import torch", cell.replace("SYNC", "torch.cuda.synchronize()")))
    assert [f.code for f in found] == ["DEV102"]
    assert found[0].cell_line == len(cell.splitlines())


def test_fixes_are_not_offered_for_notebooks() -> None:
    (finding,) = scan(notebook("import torch\ntorch.cuda.empty_cache()"))
    assert finding.fix is None


def test_what_is_no_notebook_is_reported() -> None:
    for data in (b"cuda", b'{"cuda": 1}', b"\xffcuda", b"[" * 100_000 + b"cuda"):
        (finding,) = scan(data)
        assert finding.code == "DEV000"
    assert scan(b'{"cells": []}') == []
