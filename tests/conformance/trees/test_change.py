"""What a change breaks and what it mends: the table, its command, and the action that calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from trees_made import tree

from conformance.report import Case, Machine, Part, Report
from conformance.trees import change

ACTION = Path(__file__).parents[3] / ".github" / "actions" / "trees" / "action.yml"
PLANNER, CHOSEN = "acestep/llm_inference.py:336", "runs on cpu where auto is asked"
ONLY_CUDA = '"cuda" if torch.cuda.is_available() else "cpu"'


def report(**outcomes: tuple[str, str, str]) -> Report:
    """A run on two devices; `name_device=(outcome, place, message)`, of S4."""
    machine = Machine("Linux", "3.12", {}, {"cpu": "", "mps-sim": ""}, "/tree", "now", kin=False)
    cases = []
    for key, (outcome, place, message) in outcomes.items():
        name, _, device = key.partition("_")
        target = "mps-sim" if device == "mps" else "cpu"
        case = Case(f"test_facts.py::test_{name}", target, outcome, 0.0, ["S4"], [], message, place)
        cases.append(case)
    return Report([Part(machine, cases)])


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (("pass", "a.py:1", "right"), ("fail", PLANNER, CHOSEN), change.NEW),
        (("absent", "", "no such thing"), ("broken", "", "import fails"), change.NEW),
        (("fail", PLANNER, CHOSEN), ("pass", "a.py:9", "right"), change.FIXED),
        (("fail", PLANNER, CHOSEN), ("blocked", "", "needs x"), change.UNDECIDED),
        (("pass", "a.py:1", "right"), ("blocked", "", "needs x"), change.UNDECIDED),
        (("fail", PLANNER, CHOSEN), ("fail", PLANNER, "raises"), change.CHANGED),
        (("fail", PLANNER, "at b.py:3"), ("fail", "acestep/a.py:9", "at b.py:4"), ""),
        (("pass", "a.py:1", "right"), ("pass", "b.py:1", "right"), ""),
        (("blocked", "", "needs x"), ("pass", "a.py:1", "right"), ""),
    ],
)
def test_what_a_fact_says_otherwise(
    before: tuple[str, str, str], after: tuple[str, str, str], kind: str
) -> None:
    rows = change.of_suite(report(planner_cpu=before), report(planner_cpu=after))
    assert [row.kind for row in rows] == ([kind] if kind else [])


def test_devices_that_agree_are_one_row() -> None:
    right, wrong = ("pass", "a.py:1", "right"), ("fail", PLANNER, CHOSEN)
    base = report(planner_cpu=right, planner_mps=right, page_cpu=wrong)
    head = report(planner_cpu=wrong, planner_mps=wrong, page_cpu=wrong)
    (row,) = change.of_suite(base, head)
    assert (row.devices, row.place) == ("cpu, mps-sim", PLANNER)
    assert row.who == "S4 the LM takes this machine's device"
    assert "still: S4; 3 findings" in change.unchanged(base, head, 3)


def test_findings_are_known_again_where_they_moved(tmp_path: Path) -> None:
    """One mended, one planted, one moved below other lines; and nothing is written there."""
    base = tree(
        tmp_path / "base",
        "first",
        planner={"best": ONLY_CUDA},
        scorer={"placed": "energy_matrix.cuda()"},
    )
    head = tree(tmp_path / "head", "first", scorer={"placed": "energy_matrix.cuda()"}, extra="# more\n# lines",
                trainer={"cast": "torch.cuda.amp.autocast()"})  # fmt: skip
    files = sorted(tmp_path.rglob("*"))
    rows = change.of_scanner(change.findings(base), change.findings(head))
    assert sorted(tmp_path.rglob("*")) == files
    said = {(row.kind, row.place.partition(":")[0]) for row in rows}
    assert said == {
        (change.FIXED, "acestep/llm_inference.py"),
        (change.NEW, "acestep/training/trainer.py"),
    }


def test_the_table_quotes_what_code_says_and_mentions_nobody() -> None:
    rows = [
        change.Row(change.FIXED, "DEV104", "", "a.py", "chosen"),
        change.Row(change.NEW, "S2 any | device", "cpu", "b.py:1", "@who `x` | <img>\nand more"),
    ]
    page = change.page(rows, ["note"])
    assert page.splitlines() == [
        change.MARK,
        "### Devices: 1 new, 1 fixed since base",
        "",
        "| | what | on | where | said |",
        "| --- | --- | --- | --- | --- |",
        "| **new** | S2 any \\| device | cpu | `b.py:1` | `@who 'x' \\| <img> and more` |",
        "| fixed | DEV104 | reading | `a.py` | `chosen` |",
        "",
        "note",
    ]
    assert change.page([]).splitlines() == [change.MARK, "### Devices: 0 new, 0 fixed since base"]
    many = [change.Row(change.NEW, "S1", "cpu", f"{n}.py", "x" * 999) for n in range(999)]
    assert len(change.page(many)) < 60000
    assert "and 919 more" in change.page(many)


def test_the_documented_workflows_keep_code_and_comments_apart() -> None:
    """What runs a pull request's code may write nothing; what writes runs none of it."""
    text = (ACTION.parents[3] / "conformance" / "trees" / "README.md").read_text("utf-8")
    asking, telling = (
        yaml.safe_load(part.partition("```")[0]) for part in text.split("```yaml")[1:]
    )
    assert asking["permissions"] == {"contents": "read"}
    (job,) = asking["jobs"].values()
    (used,) = [step for step in job["steps"] if "actions/trees" in step.get("uses", "")]
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    assert set(used["with"]) <= set(action["inputs"])
    (job,) = telling["jobs"].values()
    assert job["env"]["MARK"] == change.MARK
    assert not [step for step in job["steps"] if "uses" in step or "${{" in step["run"]]


def script(tmp_path: Path, base: str, head: str, **options: str) -> Any:
    """What the action's script does with these inputs, and its summary."""
    (step,) = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["runs"]["steps"]
    # No input stands in the script itself, where it would be run.
    assert "${{" not in step["run"]
    given = {
        "TREES_BASE": base,
        "TREES_HEAD": head,
        "TREES_DEVICE": "cpu",
        "TREES_OUTPUT": str(tmp_path / "conformance.md"),
        "TREES_PYTHON": sys.executable,
        "TREES_HOME": str(ACTION.parents[3]),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    assert set(step["env"]) | {"GITHUB_STEP_SUMMARY"} == set(given)
    return subprocess.run(
        ["bash", "-c", step["run"]],
        env={**os.environ, **given, **options},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_actions_script_refuses_in_one_line(tmp_path: Path) -> None:
    done = script(tmp_path, "nowhere", ".")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line) == (
        2,
        "conformance.trees: error: nowhere: no such folder; give a checkout as FOLDER[@COMMIT]",
    )


@pytest.mark.soak
def test_the_action_tells_a_change(tmp_path: Path) -> None:
    """`pytest -m soak tests/conformance/trees/test_change.py`: two runs of the suite, 20 s."""
    parts = ("page", "scorer", "trainer", "command", "handler")
    root = tree(tmp_path / "tree", "first", without=parts, planner={"used": '"cuda"'})
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    memory = {"otherwise": "raise OSError('no card')"}
    for name in (root / "acestep").rglob("*.py"):
        name.unlink()
    tree(root, "first", without=parts, memory=memory)
    done = script(tmp_path, f"{root}@HEAD", str(root))
    assert done.returncode == 1, done.stderr
    page = (tmp_path / "conformance.md").read_text()
    assert (tmp_path / "summary.md").read_text() == page
    lines = page.splitlines()
    assert [line for line in lines if line.startswith("| **new** | S6")], page
    assert [line for line in lines if line.startswith("| fixed | S4")], page
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True)
    assert b"??" not in status.stdout
