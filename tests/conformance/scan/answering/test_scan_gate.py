"""The gate: a partial run and an edit, and what the baseline is afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance.scan.cli import main

SYNC = "import torch\n\n\ndef wait():\n    torch.cuda.synchronize()\n"
LOAD = "import torch\n\n\ndef load(path):\n    return torch.load(path)\n"
PICK = "import torch\n\ndevice = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
FREE = "import torch\n\n\ndef free():\n    if torch.cuda.is_available():\n        torch.cuda.empty_cache()\n"
FILES = {
    "a.py": SYNC + LOAD[12:],
    "b.py": PICK,
    "pkg/c.py": LOAD,
    "pkg/deep/d.py": SYNC,
    "notes.py": FREE,
}
UPDATE = ["--update-baseline"]
GROW = ["--update-baseline", "--grow"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project under version control with a baseline of all that is found in it."""
    folder = tmp_path_factory.mktemp("gate") / "project"
    for name, code in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    (folder / "pyproject.toml").write_text("[tool.conformance.scan]\ncache = false\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    assert main(["--severity", "note", "--baseline", "known.json", *GROW, "-q"]) == 0
    assert len(entries(folder)) == 6
    return folder


def entries(project: Path) -> list[tuple[str, str]]:
    content = json.loads((project / "known.json").read_text())
    return sorted((row["path"], row["code"]) for row in content["findings"])


def nothing(folder: Path) -> None:
    """No edit at all."""


def write(name: str, code: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(code) and None  # type: ignore[func-returns-value]


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / old).rename(folder / new) and None  # type: ignore[func-returns-value]


def copy(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copy(folder / old, folder / new) and None  # type: ignore[func-returns-value]


@dataclass
class Row:
    """An edit and a run after it: which entries are gone, which came, and the exit status."""

    edit: Callable[[Path], None]
    run: list[str]
    gone: tuple[str, ...] = ()
    came: tuple[str, ...] = ()
    status: int = 0


MENDED = "x = 1\n"
TABLE = {
    "everything, nothing edited": Row(nothing, [*UPDATE]),
    "a file": Row(nothing, ["b.py", *UPDATE]),
    "a folder": Row(nothing, ["pkg", *UPDATE]),
    "a folder by another way": Row(nothing, ["./pkg/../pkg", *UPDATE]),
    "a folder by its whole path": Row(nothing, ["{here}/pkg", *UPDATE]),
    "a folder inside": Row(nothing, ["pkg/deep", *UPDATE]),
    "a rule": Row(nothing, ["--select", "DEV114", *UPDATE]),
    "a group of rules": Row(nothing, ["--select", "DEV11", *UPDATE]),
    "a rule left out": Row(nothing, ["--ignore", "DEV102", *UPDATE]),
    "errors only": Row(nothing, ["--severity", "error", *UPDATE]),
    "warnings, where notes are known": Row(nothing, ["--severity", "warning", *UPDATE]),
    "a pattern left out": Row(nothing, ["--exclude", "pkg", *UPDATE]),
    "a change of nothing": Row(nothing, ["--diff", "HEAD", *UPDATE]),
    "a file, grown": Row(nothing, ["b.py", *GROW]),
    "a rule, grown": Row(nothing, ["--select", "DEV114", *GROW]),
    "errors only, grown": Row(nothing, ["--severity", "error", *GROW]),
    "mended, everything looked at": Row(write("b.py", MENDED), [*UPDATE], gone=("b.py",)),
    "mended, the file looked at": Row(write("b.py", MENDED), ["b.py", *UPDATE], gone=("b.py",)),
    "mended, another file looked at": Row(write("b.py", MENDED), ["a.py", *UPDATE]),
    "mended, another folder looked at": Row(write("b.py", MENDED), ["pkg", *UPDATE]),
    "mended, another rule looked at": Row(
        write("b.py", MENDED), ["--select", "DEV102", *UPDATE]
    ),
    "a warning mended, errors looked at": Row(
        write("b.py", MENDED), ["--severity", "error", *UPDATE], gone=("b.py",)
    ),
    "mended, seen in the change": Row(
        write("b.py", MENDED), ["--diff", "HEAD", *UPDATE], gone=("b.py",)
    ),
    "deleted, everything looked at": Row(remove("b.py"), [*UPDATE], gone=("b.py",)),
    "deleted, its folder looked at": Row(
        remove("pkg/c.py"), ["pkg", *UPDATE], gone=("pkg/c.py",)
    ),
    "deleted, another folder looked at": Row(remove("b.py"), ["pkg", *UPDATE]),
    "renamed, everything looked at": Row(
        rename("b.py", "e.py"), [*UPDATE], gone=("b.py",), came=("e.py",)
    ),
    "renamed, the new name looked at": Row(
        rename("b.py", "e.py"), ["e.py", *UPDATE], gone=("b.py",), came=("e.py",)
    ),
    "copied, the copy looked at": Row(copy("b.py", "e.py"), ["e.py", *UPDATE], status=1),
    "copied, grown": Row(copy("b.py", "e.py"), ["e.py", *GROW], came=("e.py",)),
    "broken": Row(write("a.py", FILES["a.py"] + "def (:\n"), [*UPDATE], status=1),
    "broken and looked at alone": Row(write("a.py", "(torch.cuda\n"), ["a.py", *UPDATE], status=1),
    "no text any more": Row(
        lambda folder: (folder / "a.py").write_bytes(b"\xff torch.cuda") and None,  # type: ignore[func-returns-value]
        [*UPDATE],
        status=1,
    ),
    "something new, not grown": Row(write("new.py", SYNC), [*UPDATE], status=1),
    "something new, grown": Row(write("new.py", SYNC), [*GROW], came=("new.py",)),
    "something new, another part grown": Row(write("new.py", SYNC), ["pkg", *GROW]),
    "something new beside a change, grown": Row(
        write("new.py", SYNC), ["--diff", "HEAD", *GROW], came=("new.py",)
    ),
    "a finding silenced": Row(
        write("b.py", PICK.replace("\n\ndev", "\n\n# conformance: ignore[DEV104] right\ndev")),
        ["b.py", *UPDATE],
        gone=("b.py",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_an_update_touches_only_what_the_run_could_have_seen(project: Path, name: str) -> None:
    row = TABLE[name]
    before = entries(project)
    row.edit(project)
    run = [part.replace("{here}", str(project)) for part in row.run]
    severity = [] if "--severity" in run else ["--severity", "note"]
    status = main([*severity, "--baseline", "known.json", *run, "-q"])
    after = entries(project)
    assert sorted(path for path, _ in before if (path, _) not in after) == list(row.gone)
    assert sorted(path for path, _ in after if (path, _) not in before) == list(row.came)
    assert status == row.status
    assert len(after) == len(before) - len(row.gone) + len(row.came)


def test_from_a_folder_below_the_same_entries_are_meant(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "pkg")
    gate = ["--severity", "note", "--baseline", "../known.json"]
    before = entries(project)
    assert main([*gate, ".", "-q"]) == 0
    assert main([*gate, ".", *UPDATE, "-q"]) == 0
    assert entries(project) == before


def test_a_copy_elsewhere_is_new_though_its_original_was_not_looked_at(project: Path) -> None:
    copy("pkg/c.py", "pkg/deep/e.py")(project)
    assert main(["--baseline", "known.json", "pkg/deep", "-q"]) == 1


def test_what_cannot_be_parsed_answers_for_no_other_file(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "e.py").write_text(SYNC)
    (project / "a.py").write_text(SYNC + "def f(:\n")
    (project / "pkg/deep/d.py").write_text("def g(:\n    torch.cuda.synchronize()\n")
    assert main(["--baseline", "known.json", "--output-format", "concise"]) == 1
    said = capsys.readouterr().out
    assert "e.py:5:5: DEV102" in said
    assert said.count("DEV102") == 1
    assert len(entries(project)) == 6


def test_what_was_recorded_dropped_and_kept_is_said(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("b.py", SYNC)(project)
    main(["--baseline", "known.json", "b.py", *GROW])
    assert "1 recorded, 1 dropped, 5 kept in known.json\n" in capsys.readouterr().err
    main(["--baseline", "known.json", *UPDATE])
    assert "0 dropped, 6 kept in known.json\n" in capsys.readouterr().err


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_new_baseline_has_the_mode_that_the_umask_leaves(
    project: Path, mask: int, mode: int
) -> None:
    (project / "known.json").unlink()
    held = os.umask(mask)
    try:
        main(["--baseline", "known.json", *GROW, "-q"])
    finally:
        os.umask(held)
    assert (project / "known.json").stat().st_mode & 0o777 == mode
    (project / "known.json").chmod(0o664)
    main(["--baseline", "known.json", *UPDATE, "-q"])
    assert (project / "known.json").stat().st_mode & 0o777 == 0o664
