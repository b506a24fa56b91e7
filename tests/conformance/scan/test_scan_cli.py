"""The command line: selections, gates, exit codes, settings, cache and processes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import __version__
from conformance.cli import main as conformance
from conformance.scan.answering.cache import Cache
from conformance.scan.cli import main
from conformance.scan.config import Config, load_config
from conformance.scan.errors import ConfigError
from conformance.scan.judging.rules import RULES
from conformance.scan.proving import study
from conformance.scan.reading.discover import discover
from conformance.scan.reading.source import read_bytes
from conformance.scan.runner import scan

BAD = "import torch\ntorch.cuda.synchronize()\n"
TWO = BAD + "state = torch.load('x')\n"
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "bad.py").write_text(TWO)
    (tmp_path / "good.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(project: Path, text: str) -> None:
    (project / "pyproject.toml").write_text("[tool.conformance.scan]\n" + text)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def codes(lines: list[str]) -> list[str]:
    return [line.split(": ")[1].split()[0] for line in lines]


def test_findings_give_1_and_a_clean_run_0(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, err = run(capsys)
    assert (status, codes(lines)) == (1, ["DEV102", "DEV114"])
    assert lines[0].startswith("bad.py:2:1: DEV102 [*] error: ")
    assert err == "2 findings in 3 files, 2 fixable with --fix\n"
    assert run(capsys, "good.py", "--quiet") == (0, [], "")
    assert run(capsys, "good.py")[2] == "0 findings in 1 file\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--select", "DEV114"], ["DEV114"]),
        (["--select", "DEV11,DEV102"], ["DEV102", "DEV114"]),
        (["--ignore", "DEV102"], ["DEV114"]),
        (["--severity", "error"], ["DEV102"]),
        (["--exclude", "bad*"], []),
        (["--jobs", "1"], ["DEV102", "DEV114"]),
        (["--no-cache", "--isolated"], ["DEV102", "DEV114"]),
    ],
)
def test_selection(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: list[str],
) -> None:
    assert codes(run(capsys, *arguments)[1]) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.py"], "does not exist"),
        (["--select", "E501"], "unknown rule 'E501'"),
        (["--severity", "fatal"], "expected error, warning or note"),
        (["--jobs", "-1"], "must be 0"),
        (["--explain", "DEV999"], "no rule 'DEV999'"),
        (["--baseline", "none.json"], "does not exist"),
        (["--update-baseline"], "needs --baseline"),
        (["--grow"], "only goes with"),
        (["--config", "none.toml"], "cannot read"),
        (["--output=x"], "unrecognized arguments"),
        (["-", "bad.py"], "cannot be mixed"),
        (["--output-file", "no/folder/x"], "cannot write"),
        (["--select", "DEV101", "--ignore", "DEV1"], "no rule is left: select DEV101"),
    ],
)
def test_a_run_that_cannot_be_gives_2_and_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    try:
        status, _, err = run(capsys, *arguments)
    except SystemExit as stopped:
        status, err = int(str(stopped.code)), capsys.readouterr().err
    assert status == 2
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select = 'DEV101'", "must be a list"),
        ("colour = 1", "is not a setting"),
        ("severity = 'fatal'", "unknown severity"),
        ("per-file-ignores = ['x']", "must map patterns"),
        ("baseline = 1", "must be a string"),
        ("jobs = true", "is not a setting"),
        ("output-format = 'html'", "unknown output format"),
        ("= =", "not valid TOML"),
    ],
)
def test_bad_settings_name_the_file_and_the_key(
    project: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    settings(project, text)
    status, _, err = run(capsys)
    assert status == 2
    assert words in err


def test_settings_are_read_and_the_command_line_wins(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(
        project,
        'select = ["DEV102", "DEV114"]\nexclude = ["good.py"]\ncache = false\njobs = 1\n'
        'per-file-ignores = { "bad.py" = ["DEV102"], "**/x.py" = ["DEV1"] }\n',
    )
    status, lines, err = run(capsys)
    assert (status, codes(lines)) == (1, ["DEV114"])
    assert "in 1 file" in err
    assert codes(run(capsys, "--isolated")[1]) == ["DEV102", "DEV114"]
    assert run(capsys, "--select", "DEV101")[0] == 0
    (project / "pyproject.toml").write_text("tool = 1")
    with pytest.raises(ConfigError, match="not a table"):
        load_config(None, project)


def test_standard_input(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BAD.encode())))
    status, lines, _ = run(capsys, "-", "--stdin-filename", "shown.py")
    assert status == 1
    assert lines[0].startswith("shown.py:2:1: DEV102")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BAD.encode())))
    assert run(capsys, "-", "--fix")[0] == 2


def test_reports_to_a_file_and_statistics(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "--output-format", "json", "--output-file", "out.json")[1] == []
    assert len(json.loads((project / "out.json").read_text())) == 2
    assert run(capsys, "--statistics")[1][0].split() == ["1", "DEV102", "unguarded-backend-call"]
    assert "# Rules" in run(capsys, "--explain", "all")[1]


def test_fix_and_patch(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = TWO + "x = torch.zeros(1, device='cuda')\n"
    (project / "bad.py").write_text(three)
    status, lines, _ = run(capsys, "--diff-only")
    assert (status, lines[0]) == (1, "--- a/bad.py")
    assert (project / "bad.py").read_text() == three
    status, lines, err = run(capsys, "--fix")
    assert (status, codes(lines)) == (1, ["DEV101"])
    assert "2 mended" in err
    assert run(capsys, "--fix", "--unsafe-fixes")[0] == 0
    text = (project / "bad.py").read_text()
    assert "torch.accelerator.synchronize()" in text
    assert 'map_location=None if torch.cuda.is_available() else "cpu"' in text
    assert run(capsys, "--diff-only") == (0, [], "")


def test_baseline_only_shrinks_unless_told_to_grow(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = ["--baseline", "known.json"]
    assert run(capsys, *gate, "--update-baseline")[0] == 2
    assert run(capsys, *gate, "--update-baseline", "--grow")[0] == 0
    assert run(capsys, *gate)[0] == 0
    (project / "bad.py").write_text(BAD + "torch.cuda.current_device()\n")
    status, lines, _ = run(capsys, *gate, "--update-baseline")
    assert (status, len(lines)) == (1, 1)
    assert len(json.loads((project / "known.json").read_text())["findings"]) == 1
    assert run(capsys, *gate)[0] == 1
    assert run(capsys, *gate, "--update-baseline", "--grow")[0] == 0
    assert len(json.loads((project / "known.json").read_text())["findings"]) == 2
    settings(project, 'baseline = "known.json"')
    assert run(capsys)[0] == 0


def git(*arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


def test_diff_reports_only_what_the_change_touched(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "--diff", "HEAD")[0] == 2
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert run(capsys, "--diff", "HEAD")[0] == 0
    assert "could not tell" in run(capsys, "--diff", "nowhere")[2]
    assert "is not a revision" in run(capsys, "--diff=--output=x")[2]
    (project / "bad.py").write_text("# moved\n" + TWO + "torch.cuda.current_device()\n")
    odd = project / "né w\n.py"
    odd.write_text(BAD)
    status, lines, _ = run(capsys, "--diff", "HEAD")
    assert status == 1
    assert [line.split(": ")[0] for line in lines] == ["bad.py:5:1", "né w\\n.py:2:1"]
    odd.unlink()
    (project / "bad.py").unlink()
    assert run(capsys, "--diff", "HEAD")[0] == 0


def test_the_cache_answers_for_the_same_content_and_rules(project: Path) -> None:
    config = Config(project).checked()
    targets = discover(["."], config)
    cold = scan(targets, config)
    warm = scan(targets, config)
    assert (cold.cached, warm.cached) == (0, 3)
    assert warm.findings == cold.findings
    assert warm.findings[0].source == cold.findings[0].source
    chosen = Config(project, select=("DEV114",)).checked()
    assert scan(targets, chosen).cached == 0
    (project / "bad.py").write_text(BAD)
    assert scan(targets, config).cached == 2
    (project / "cuda").mkdir()
    (project / "cuda/bad.py").write_text(BAD)
    moved = scan(discover(["cuda"], config), config)
    assert (moved.cached, moved.findings) == (0, [])
    assert (project / ".conformance_cache/.gitignore").read_text() == "*\n"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_cache_counts_as_empty(project: Path, content: bytes) -> None:
    config = Config(project).checked()
    targets = discover(["."], config)
    first = scan(targets, config)
    Cache(project / ".conformance_cache", config.rules()).file.write_bytes(content)
    again = scan(targets, config)
    assert (again.cached, again.findings) == (0, first.findings)


def test_bad_rows_in_the_cache_are_scanned_again(project: Path) -> None:
    config = Config(project).checked()
    targets = discover(["."], config)
    first = scan(targets, config)
    file = Cache(project / ".conformance_cache", config.rules()).file
    rows = {key: [[1, 2]] for key in json.loads(file.read_text())}
    file.write_text(json.dumps(rows))
    assert scan(targets, config).findings == first.findings


def test_many_files_go_to_several_processes_with_the_same_result(project: Path) -> None:
    for number in range(60):
        (project / f"m{number:02}.py").write_text(BAD + "# " + "x" * 60_000 + f"\n# {number}\n")
    alone = Config(project, jobs=1, cache=False).checked()
    shared = Config(project, jobs=2, cache=False).checked()
    targets = discover(["."], alone)
    assert scan(targets, shared).findings == scan(targets, alone).findings


def test_a_file_that_cannot_be_read_any_more_is_reported(project: Path) -> None:
    config = Config(project).checked()
    targets = discover(["bad.py"], config)
    (project / "bad.py").unlink()
    (finding,) = scan(targets, config).findings
    assert finding.message == "could not be read: No such file or directory"


def test_what_is_no_file_is_reported_and_the_rest_scanned(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "loop.py").symlink_to(project / "loop.py")
    os.mkfifo(project / "pipe.py")
    status, lines, _ = run(capsys, "loop.py", "pipe.py", "bad.py")
    assert (status, codes(lines)) == (1, ["DEV102", "DEV114", "DEV000", "DEV000"])
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes(str(project / "pipe.py"))


def test_the_command_knows_its_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance(["--help"]) == 0
    assert "scan" in capsys.readouterr().out
    assert conformance(["--version"]) == 0
    assert capsys.readouterr().out == f"conformance {__version__}\n"
    assert conformance([]) == 2
    assert conformance(["dance"]) == 2
    assert "unknown command 'dance'" in capsys.readouterr().err
    assert conformance(["scan", "--explain", "DEV101"]) == 0


def test_starting_the_scanner_loads_neither_torch_nor_the_other_commands() -> None:
    code = (
        "import sys; from conformance.cli import main; main(['scan', '--explain', 'DEV101']);"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'acestep', 'numpy')"
        " or m.startswith(('conformance.simulate', 'conformance.suite'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_hook_runs_from_a_checkout_with_a_bare_interpreter(project: Path) -> None:
    hook = REPOSITORY / "conformance/scan/hook.py"
    assert os.access(hook, os.X_OK)
    done = subprocess.run(
        [sys.executable, "-I", "-S", hook, "bad.py", "good.py"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (1, 2, "")


def test_the_study_draws_the_same_sample_for_a_seed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main(["findings", ".", "--count", "1", "--seed", "3"]) == 0
    first = capsys.readouterr().out
    assert study.main(["findings", ".", "--count", "1", "--seed", "3"]) == 0
    assert capsys.readouterr().out == first
    assert study.main(["findings", ".", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["code"] for row in rows] == ["DEV102", "DEV114"]
    (project / "more.py").write_text("# about cuda\n")
    assert study.main(["missed", ".", "--context", "0"]) == 0
    assert capsys.readouterr().out == "more.py:1\n    > # about cuda\n"
    assert study.main(["missed", ".", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "more.py", "line": 1}


def test_every_rule_runs_by_default(project: Path) -> None:
    assert Config(project).rules() == RULES


def test_a_piped_report_is_not_wrapped(project: Path) -> None:
    deep = project / ("folder_" * 12) / ("name_" * 20 + ".py")
    deep.parent.mkdir()
    deep.write_text(BAD)
    for options in ([], ["--statistics"], ["--output-format", "full"]):
        done = subprocess.run(
            [sys.executable, "-m", "conformance.scan", *options],
            cwd=project,
            env={**os.environ, "COLUMNS": "40", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert options == ["--statistics"] or f"{deep.name}:2:1: DEV102 [*] error: " in done.stdout
        assert "unguarded-backend-call\n" in done.stdout or "is in use\n" in done.stdout


def test_a_run_that_looks_at_no_file_says_so(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "empty").mkdir()
    for arguments in (["empty"], ["bad.py", "--exclude", "bad.py"], [".", "--exclude", "*"]):
        status, lines, err = run(capsys, *arguments, "-q")
        assert (status, lines) == (0, [])
        assert err.startswith(f"conformance scan: no file to scan in {arguments[0]}: ")


def test_statistics_in_json_are_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = "\n".join(run(capsys, "--statistics", "--output-format", "json")[1])
    assert json.loads(out)[0] == {"code": "DEV102", "name": "unguarded-backend-call", "count": 1}


def test_version_and_every_code_explained(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"conformance scan {__version__}\n"
    for code in ("DEV000", "dev001", "DEV002"):
        status, lines, _ = run(capsys, "--explain", code)
        assert (status, lines[0].split()[1]) == (0, code.upper())
    assert "## DEV001 faulty-ignore (warning)" in run(capsys, "--explain", "all")[1]


def test_the_readme_shows_a_revision_that_exists() -> None:
    readme = (REPOSITORY / "conformance/scan/README.md").read_text()
    tags = subprocess.run(
        ["git", "tag"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split()
    shown = re.findall(r"rev: (\S+)|actions/scan@([^\s`]+)", readme)
    assert len(shown) == 2
    for first, second in shown:
        assert (first or second).startswith("<") or (first or second) in tags
