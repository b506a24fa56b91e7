"""The command, the report, child processes and the pytest plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conformance import simulate
from conformance.bench import simulate as benchmark
from conformance.simulate import cli, report

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


def test_help_and_options_without_a_command_are_not_taken_for_one() -> None:
    shown = run("mps", "--help")
    assert shown.returncode == 0
    assert "usage: conformance simulate mps [options] -- " in shown.stdout
    assert "--memory-gb" in shown.stdout
    wrong = run("mps", "--memory", "1", "--nonsense")
    assert wrong.returncode == 2
    assert "unrecognized arguments: --nonsense" in wrong.stderr
    assert "no command given" in run("mps", "--macos", "14.0").stderr
    assert run("mps", "-c", "print(3)").stdout == "3\n"


def test_children_modules_and_forked_workers_have_the_device(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(SCRIPT)
    (tmp_path / "sitecustomize.py").write_text("print('custom', flush=True)")
    parent = (
        "import multiprocessing as m, subprocess, sys\n"
        "import worker\n"
        "if __name__ == '__main__':\n"
        "    q = m.get_context('fork').Process(target=worker.work, args=(2,))\n"
        "    q.start(); q.join(); print(q.exitcode)\n"
        "    print(subprocess.run([sys.executable, '-m', 'worker'], capture_output=True).stdout)\n"
    )
    (tmp_path / "parent.py").write_text(parent)
    target = tmp_path / "out.html"
    done = run(
        "mps", "--macos", "14.5", "--report", str(target), "--", "python", "-m", "parent",
        PYTHONPATH=_and(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The command's own process reads the environment's sitecustomize too.
    assert done.stdout.splitlines() == ["custom", "custom", "0", r"b'custom\n[] 6.0\n'"]
    page = target.read_text()
    assert "macOS 14.5" in page
    assert "What would be slow on a real Mac" in page
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
    assert run("mps", "--", "python", "-c", "import os; os.kill(os.getpid(), 9)").returncode == 137


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mps"], "no command given"),
        (["mps", "--"], "no command given"),
        (["mps", "--macos", "x", "--", "python"], "macos='x' is not a version"),
        (["mps", "--memory-gb", "-1", "--", "python"], "memory_gb=-1.0 must be above zero"),
        (["mps", "--report", "a.txt", "--", "python"], "name it *.json or *.html"),
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
    report.write(both, tmp_path / "out.html")
    assert "aten::_linalg_eigh" in (tmp_path / "out.html").read_text()
    with pytest.raises(ValueError, match=r"name it \*\.json or \*\.html"):
        report.write(both, tmp_path / "out.txt")


def test_the_plugin_gives_a_fixture_and_a_marker(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest, torch\n"
        "@pytest.mark.mps_sim(macos='14.1')\n"
        "def test_marked():\n"
        "    assert torch.ones(1, device='mps').is_mps\n"
        "    assert not torch.backends.mps.is_macos_or_newer(15, 0)\n"
        "def test_fixture(mps_sim):\n"
        "    assert mps_sim.machine.macos == '15.5'\n"
        "    with pytest.warns(UserWarning):\n"
        "        torch.compile(lambda x: x)\n"
        "def test_without():\n"
        "    assert not torch.backends.mps.is_available()\n"
    )
    plugin = "conformance.simulate.pytest_plugin"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", plugin, "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout


def test_the_benchmark_prints_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--repeat", "2", "--number", "2"]) == 0
    text = capsys.readouterr().out
    assert "add, 64 numbers" in text
    assert "ratio" in text
