"""Defaults and choices that nothing reads, so that nothing is placed by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.scan.joining.test_scan_project import judged


@pytest.mark.parametrize(
    ("body", "severity"),
    [
        ("n = 3\n    return n", "note"),
        ("n = 3\n    return n, device", "error"),
        ("n = 3\n    return locals()", "error"),
        ("n = 3\n    self.save_hyperparameters()", "error"),
        # A body that is still to be written: others of its name are given the default.
        ("raise NotImplementedError", "error"),
        ("...", "error"),
    ],
)
def test_a_default_that_nothing_reads_is_a_note(tmp_path: Path, body: str, severity: str) -> None:
    files = {"ops.py": f"def make(self, n, device='cuda'):\n    {body}\n"}
    assert judged(tmp_path, files) == [f"ops.py:1 DEV103 {severity}"]


@pytest.mark.parametrize(
    ("more", "user", "severity"),
    [
        ("", "", "note"),
        ("", "from model import Net\n", "note"),
        ("", "from model import device\nnet.to(device)\n", "warning"),
        ("", "import model\nnet.to(model.device)\n", "warning"),
        ("", "from model import *\nnet.to(device)\n", "warning"),
        ("print(device)\n", "", "warning"),
        ("", "import model\nd = getattr(model, 'device')\n", "warning"),
    ],
)
def test_a_choice_that_nothing_reads_is_a_note(
    tmp_path: Path, more: str, user: str, severity: str
) -> None:
    chosen = "import torch\ndevice = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n"
    files = {"model.py": chosen + more, "train.py": user}
    assert f"model.py:2 DEV104 {severity}" in judged(tmp_path, files)
