"""What a module tries out when it is run by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.scan.joining.test_scan_project import judged

LOSS = "import torch\ndef loss(x):\n    return x.mean()\nif __name__ == '__main__':\n    {}\n"
TRIAL = "print(loss(torch.rand(3).cuda()))"
USER = "from pkg.loss import loss\n"


def test_a_trial_of_what_others_import_is_a_note(tmp_path: Path) -> None:
    files = {"pkg/loss.py": LOSS.format(TRIAL), "train.py": USER}
    assert judged(tmp_path, files) == ["pkg/loss.py:5 DEV101 note"]


@pytest.mark.parametrize(
    ("module", "user"),
    [
        (LOSS.format(TRIAL), ""),  # nobody imports it: it is what is run
        ("import argparse\n" + LOSS.format(TRIAL), USER),
        (LOSS.format("print(loss(read().cuda()))"), USER),  # nothing made up
        (LOSS.format("torch.optim.SGD([torch.rand(3).cuda()])"), USER),  # it trains
        (LOSS.format("torch.rand(3)") + "net = build().cuda()\n", USER),  # below the block
        ('"""\n' + LOSS.format("torch.rand(3)") + '"""\nnet = build().cuda()\n', USER),
        (LOSS.format("pass").replace("x.mean()", "x.cuda()"), USER),
    ],
)
def test_a_program_is_no_trial(tmp_path: Path, module: str, user: str) -> None:
    found = judged(tmp_path, {"pkg/loss.py": module, "train.py": user})
    assert [line.rsplit(" ")[-1] for line in found] == ["error"]
