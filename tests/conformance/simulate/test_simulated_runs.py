"""The command, the report, child processes and the pytest plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from conformance import simulate
from conformance.bench import simulate as benchmark
from conformance.simulate import cli, pages, report

SCRIPT = """
import sys, torch
def work(i):
    return (torch.ones(3, device="mps") * i).sum().item()
if __name__ == "__main__":
    assert torch.backends.mps.is_available() and not torch.cuda.is_available()
    print(sys.argv[1:], work(2))
"""


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, as a user would."""
    code = "import sys; from conformance.simulate.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


def test_a_script_runs_and_is_reported(tmp_path: Path) -> None:
    script, target = tmp_path / "script.py", tmp_path / "out.json"
    script.write_text(SCRIPT)
    done = run("mps", "--report", str(target), "--", "python", str(script), "--device", "mps")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['--device', 'mps'] 6.0"
    made = json.loads(target.read_text())
    assert made["device"] == "mps-sim"
    assert {"operator": "aten::mul.Tensor", "count": 1} in made["operators"]
    (wait,) = made["transfers"]
    assert wait["place"].startswith(str(script))
    assert wait["why"] == "reads one element"
    assert made["peak_bytes"] > 0
    assert "1 waits of the host" in done.stderr


LATE = """
import torch
class Late:
    def __init__(self):
        self.x = torch.ones(3, device="mps")
    def __del__(self):
        print((self.x + self.x).sum().item(), torch.relu(self.x * 3).cpu().tolist())
late = Late()
"""


def test_operators_are_first_met_as_python_ends(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE)
    done = run("mps", "--", "python", str(script))
    assert done.stdout == "6.0 [3.0, 3.0, 3.0]\n", done.stderr


def test_help_and_options_without_a_command_are_not_taken_for_one() -> None:
    shown = run("mps", "--help")
    assert shown.returncode == 0
    assert "usage: conformance simulate mps [options] -- " in shown.stdout
    assert "--memory-gb" in shown.stdout
    wrong = run("mps", "--memory", "1", "--nonsense")
    assert wrong.returncode == 2
    assert "unrecognized arguments: --nonsense" in wrong.stderr
    assert "no command given" in run("mps", "--macos", "14.0").stderr
    # This package may be what imports torch first.
    script = "import conformance.simulate.record as r; from conformance.simulate import active; "
    script += "import multiprocessing as m; print(active() is not None, m.get_start_method())"
    assert run("mps", "-c", script).stdout == "True spawn\n"


def test_children_modules_and_forked_workers_have_the_device(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(SCRIPT)
    (tmp_path / "sitecustomize.py").write_text("print('custom', flush=True)")
    parent = (
        "import multiprocessing as m, subprocess, sys\n"
        "import worker\n"
        "assert m.get_start_method() == 'fork'\n"
        "if __name__ == '__main__':\n"
        "    q = m.get_context('fork').Process(target=worker.work, args=(2,))\n"
        "    q.start(); q.join(); print(q.exitcode)\n"
        "    print(subprocess.run([sys.executable, '-m', 'worker'], capture_output=True).stdout)\n"
    )
    (tmp_path / "parent.py").write_text(parent)
    target = tmp_path / "out.html"
    done = run(
        "mps", "--macos", "14.5", "--start-method", "fork", "--report", str(target), "--", "python", "-m", "parent",
        PYTHONPATH=_and(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The command's own process reads the environment's sitecustomize too.
    assert done.stdout.splitlines() == ["custom", "custom", "0", r"b'custom\n[] 6.0\n'"]
    page = target.read_text()
    assert "macOS 14.5" in page
    assert "and what would be slow on it" in page
    assert "aten::mul.Tensor" in page
    assert "<td>2</td><td>aten::mul.Tensor</td>" in page


def test_modules_scripts_and_console_scripts_run_without_the_word_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "some_script.py"
    script.write_text(SCRIPT)
    done = run("mps", "--", "-m", "some_script", "--device", "mps", PYTHONPATH=_and(tmp_path))
    assert done.stdout.strip() == "['--device', 'mps'] 6.0", done.stderr
    assert cli.located([str(script), "x"]) == [sys.executable, str(script), "x"]
    assert cli.located(["-c", "pass"]) == [sys.executable, "-c", "pass"]
    assert cli.located(["python3", "-m", "x"]) == [sys.executable, "-m", "x"]
    # A console script of an environment that is not activated, so on no PATH.
    beside = tmp_path / "bin"
    beside.mkdir()
    tool = beside / "some-tool"
    tool.write_text(f"#!{sys.executable}\n{SCRIPT}")
    tool.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    assert cli.located(["some-tool", "generate"]) == [str(tool), "generate"]
    assert cli.located(["no-such-tool"]) == ["no-such-tool"]
    monkeypatch.undo()
    done = run("mps", "--", "some-tool", PATH=str(beside) + os.pathsep + os.environ["PATH"])
    assert done.stdout.strip() == "[] 6.0", done.stderr


def _and(folder: Path) -> str:
    """A PYTHONPATH with `folder` before what it is."""
    return str(folder) + os.pathsep + os.environ.get("PYTHONPATH", "")


def test_the_exit_status_is_the_programs_own(tmp_path: Path) -> None:
    assert run("mps", "--", "python", "-c", "raise SystemExit(7)").returncode == 7
    target = tmp_path / "out.md"
    killed = "import os; os.kill(os.getpid(), 9)"
    done = run("mps", "--report", str(target), "--", "python", "-c", killed)
    assert done.returncode == 137
    # Said first, and in place of a count that nothing stands behind.
    assert done.stderr.startswith("THE RUN WAS KILLED by SIGKILL (exit code 137)")
    assert "nothing was recorded on the device before that" in done.stderr
    assert "0 operators" not in target.read_text()
    assert "**THE RUN WAS KILLED by SIGKILL (exit code 137)" in target.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mps"], "no command given"),
        (["mps", "--"], "no command given"),
        (["mps", "--macos", "x", "--", "python"], "macos='x' is not a version"),
        (["mps", "--memory-gb", "-1", "--", "python"], "memory_gb=-1.0 must be above zero"),
        (["mps", "--report", "a.txt", "--", "python"], "name it *.htm or *.html or *.json or *.md"),
        (
            ["mps", "--report", "no/a.md", "--", "python"],
            "cannot write a report to no/a.md: No such file",
        ),
        (["mps", "--report", "/proc/a.md", "--", "python"], "cannot write a report to /proc"),
        (["mps", "--", "no-such-program-here"], "cannot run no-such-program-here"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_run_without_the_device_is_reported_as_empty(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    assert cli.main(["mps", "--report", str(target), "--", "python", "-c", "pass"]) == 0
    assert json.loads(target.read_text())["operators"] == []


def test_a_refusal_ends_in_the_users_line_and_stands_in_each_report(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import torch\ntorch.linalg.eigh(torch.eye(2, device='mps'))\n")
    target = tmp_path / "out.json"
    done = run("mps", "--report", str(target), "--", "python", str(script))
    assert done.returncode == 1
    trace = done.stderr.split("NotImplementedError")[0]
    assert trace.splitlines()[-2:] == [
        f'  File "{script}", line 2, in <module>',
        "    torch.linalg.eigh(torch.eye(2, device='mps'))",
    ]
    assert "conformance/simulate" not in trace
    made = json.loads(target.read_text())
    (refusal,) = made["refusals"]
    assert refusal["operator"] == "aten::_linalg_eigh.eigenvalues"
    assert refusal["place"] == f"{script}:2"
    assert (refusal["count"], refusal["mistake"], made["status"]) == (1, False, 1)
    assert "THE RUN FAILED with exit code 1\n" in done.stderr
    assert "refused (missing-operator, the Mac's) at" in done.stderr
    tests = [
        {
            "test": f"a.py::test_{name}",
            "outcome": outcome,
            "limit": limit,
            "operator": refusal["operator"] if limit else "",
            "exception": "E",
            "place": "a.py:2",
            "at": refusal["place"],
        }
        for name, outcome, limit in (
            ("refused", "failed", "missing-operator"),
            ("wrong", "failed", ""),
            ("good", "passed", ""),
            ("known", "known", ""),
        )
    ]
    whole = report.completed(made, 1, tests)
    assert whole["refusals"][0]["tests"] == ["a.py::test_refused"]
    assert "the Mac's, 1 tests) at" in report.summary(whole)
    suite = ElementTree.fromstring(pages.junit(whole))
    assert (suite.get("tests"), suite.get("failures")) == ("5", "3")
    cases = {case.get("name"): case.find("failure") for case in suite}
    assert cases["test_good"] is None
    assert cases["run"] is not None
    alone = ElementTree.fromstring(pages.junit(report.completed(made, 0, [])))
    assert [case.get("classname") for case in alone] == ["mps-sim", "missing-operator"]
    for text in (pages.markdown(whole), pages.page(whole)):
        assert "a.py::test_refused" in text
        assert str(script) in text


def test_reports_add_up(tmp_path: Path) -> None:
    with simulate.mps(fallback=True) as sim:
        x = torch.eye(2, device="mps")
        with pytest.warns(UserWarning, match="fall back"):
            torch.linalg.eigvalsh(x)
        x[x > 0].cpu()
        first = report.collect(sim)
        sim.recorder.clear()
        assert report.collect(sim)["operators"] == []
    both = report.merge([first, first])
    assert both["processes"] == 2
    assert both["peak_bytes"] == first["peak_bytes"]
    assert both["fallbacks"][0]["count"] == 2 * first["fallbacks"][0]["count"]
    assert both["transferred_bytes"]["to host"] == 2 * first["transferred_bytes"]["to host"]
    whys = {row["why"] for row in both["transfers"]}
    assert {"copy", "boolean mask: waits for a size"} <= whys
    pages.write(both, tmp_path / "out.html")
    assert "aten::_linalg_eigh" in (tmp_path / "out.html").read_text()
    with pytest.raises(ValueError, match=r"name it \*\.htm or"):
        pages.write(both, tmp_path / "out.txt")


def test_the_benchmark_prints_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--passes", "1", "--patience", "0"]) == 0
    text = capsys.readouterr().out
    assert "add, 64 numbers" in text
    assert "ratio" in text
    assert "below the dispatch mode" in text
