"""The baseline: a table of edits, and what the gate says of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance.scan.answering import baseline
from conformance.scan.answering.baseline import Entry, compare
from conformance.scan.errors import ConfigError
from conformance.scan.findings import Finding
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES

BEFORE = """import torch


def load(path):
    model = torch.nn.Linear(path, 2)
    return model.to("cuda")


class Runner:
    def step(self, batch):
        torch.cuda.synchronize()
        return batch.cuda()
"""


def scan(*files: tuple[str, str]) -> list[Finding]:
    return [found for path, code in files for found in analyse(path, code.encode(), RULES)]


def one(code: str, path: str = "a.py") -> list[Finding]:
    return scan((path, code))


#: Edit, the project after it, how many findings are new and how many entries are gone.
EDITS: dict[str, tuple[list[Finding], int, int]] = {
    "nothing": (one(BEFORE), 0, 0),
    "lines moved down": (one("# one\n# two\n\n" + BEFORE), 0, 0),
    "code put between": (one(BEFORE.replace("class", "def other():\n    pass\n\n\nclass")), 0, 0),
    "functions swapped": (
        one("import torch\n" + BEFORE[BEFORE.index("\nclass") :] + BEFORE[12 : BEFORE.index("\nclass")]),
        0,
        0,
    ),
    "reformatted": (
        one(BEFORE.replace('model.to("cuda")', "model.to(\n        'cuda',\n    )")),
        0,
        0,
    ),
    "re-indented": (one(BEFORE.replace("    ", "\t")), 0, 0),
    "comments added": (one(BEFORE.replace('"cuda")', '"cuda")  # why')), 0, 0),
    "unrelated function renamed": (one(BEFORE + "\n\ndef helper2():\n    return 1\n"), 0, 0),
    "enclosing function renamed": (one(BEFORE.replace("def load", "def load_model")), 0, 0),
    "enclosing class renamed": (one(BEFORE.replace("Runner", "Trainer")), 0, 0),
    "variable renamed": (one(BEFORE.replace("batch", "inputs")), 0, 0),
    "file renamed": (one(BEFORE, "b.py"), 0, 0),
    "function moved to another file": (
        scan(
            ("a.py", BEFORE[: BEFORE.index("\n\nclass")]),
            ("b.py", "import torch\n\n" + BEFORE[BEFORE.index("\nclass") :]),
        ),
        0,
        0,
    ),
    "moved into a class": (
        one(BEFORE.replace("def load(path)", "class L:\n  def load(self, path)")
            .replace("    model = torch", "      model = torch")
            .replace("    return model.to", "      return model.to")),
        0,
        0,
    ),
    "mended": (one(BEFORE.replace('"cuda"', "path.device")), 0, 1),
    "function deleted": (one("import torch\n" + BEFORE[BEFORE.index("\nclass") :]), 0, 1),
    "statement duplicated": (
        one(BEFORE.replace("        torch.cuda.s", "        torch.cuda.synchronize()\n        torch.cuda.s")),
        1,
        0,
    ),
    "function copied": (
        one(BEFORE + "\n\ndef load2(path):\n    model = torch.nn.Linear(path, 2)\n    return model.to('cuda')\n"),
        1,
        0,
    ),
    "file copied": (scan(("a.py", BEFORE), ("copy.py", BEFORE)), 3, 0),
    "new call": (one(BEFORE + "\n\nprint(torch.cuda.current_device())\n"), 1, 0),
    "one mended and another written": (
        one(BEFORE.replace('model.to("cuda")', "torch.ones(2, device='cuda:1')")),
        1,
        1,
    ),
    "another device": (one(BEFORE.replace('"cuda"', '"mps"')), 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_only_what_is_new_is_reported(edit: str) -> None:
    entries = [Entry.of(finding) for finding in one(BEFORE)]
    assert len(entries) == 3
    after, new, gone = EDITS[edit]
    result = compare(after, entries)
    assert (len(result.new), result.gone) == (new, gone)
    assert len(result.kept) == len(after) - new


def test_saved_and_loaded_entries_are_the_same_in_any_order(tmp_path: Path) -> None:
    entries = [Entry.of(finding) for finding in one(BEFORE)]
    file = tmp_path / "baseline.json"
    baseline.save(file, reversed(entries))
    first = file.read_bytes()
    assert sorted(baseline.load(file)) == sorted(entries)
    baseline.save(file, entries)
    assert file.read_bytes() == first
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"version": 2}', '{"version": 1, "findings": [{"path": "x"}]}', "\xff"]
)
def test_a_damaged_baseline_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="damaged"):
        baseline.load(file)


def test_a_missing_baseline_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--update-baseline --grow"):
        baseline.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot read"):
        baseline.load(tmp_path)
    with pytest.raises(ConfigError, match="cannot write"):
        baseline.save(tmp_path / "no" / "folder.json", [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        baseline.save(tmp_path / "folder", [])
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["folder"]'
