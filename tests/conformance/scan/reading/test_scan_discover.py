"""Which files are scanned: ignore files as git reads them, excludes, links and odd entries."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from conformance.scan.config import Config
from conformance.scan.errors import ConfigError
from conformance.scan.reading.discover import discover
from conformance.scan.reading.ignorefile import Patterns

PATTERNS = [
    "*.log.py",
    "/only_top.py",
    "folder/",
    "deep/**/x.py",
    "**/anywhere.py",
    "inside/**",
    "a?c.py",
    "[xy].py",
    "[!a-m]z.py",
    "kept/*\n!kept/this.py",
    "# comment",
    "\\#hash.py",
    "trail.py   ",
    "no/slash/x.py",
    "*.py\n!b.py",
]
PATHS = [
    "b.py",
    "x.py",
    "az.py",
    "qz.py",
    "abc.py",
    "t.log.py",
    "only_top.py",
    "sub/only_top.py",
    "folder/x.py",
    "sub/folder/y.py",
    "deep/x.py",
    "deep/a/b/x.py",
    "anywhere.py",
    "sub/anywhere.py",
    "inside/x.py",
    "inside/y/z.py",
    "kept/this.py",
    "kept/other.py",
    "#hash.py",
    "trail.py",
    "no/slash/x.py",
    "sub/no/slash/x.py",
]


def make(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n")


def found(root: Path, *paths: str, exclude: tuple[str, ...] = ()) -> list[str]:
    config = Config(root, exclude=exclude)
    targets = discover([str(root / path) for path in paths] or [str(root)], config)
    return [os.path.relpath(target.path, root) for target in targets]


@pytest.mark.parametrize("patterns", PATTERNS)
def test_gitignore_is_read_as_git_reads_it(tmp_path: Path, patterns: str) -> None:
    make(tmp_path, PATHS)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text(patterns + "\n")
    git = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-standard", "*.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found(tmp_path) == sorted(name for name in git.stdout.split("\0") if name)


def test_nested_ignore_files_and_files_given_by_name(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    make(tmp_path, ["a.py", "sub/a.py", "sub/b.py"])
    (tmp_path / ".gitignore").write_text("a.py\n")
    (tmp_path / "sub/.gitignore").write_text("!a.py\nb.py\n")
    assert found(tmp_path) == ["sub/a.py"]
    assert found(tmp_path, "sub") == ["sub/a.py"]
    assert found(tmp_path, "a.py") == ["a.py"]


def test_exclude_counts_for_files_given_by_name(tmp_path: Path) -> None:
    make(tmp_path, ["a.py", "tests/fixtures/b.py", "tests/c.py"])
    exclude = ("tests/fixtures",)
    assert found(tmp_path, exclude=exclude) == ["a.py", "tests/c.py"]
    assert found(tmp_path, "tests/fixtures/b.py", exclude=exclude) == []


def test_environments_caches_and_other_files_are_left_out(tmp_path: Path) -> None:
    make(
        tmp_path, [".venv/a.py", "env/pyvenv.cfg", "env/b.py", "__pycache__/c.py", "d.txt", "e.pyi"]
    )
    assert found(tmp_path) == ["e.pyi"]
    assert found(tmp_path, ".venv") == [".venv/a.py"]


def test_loops_of_links_and_pipes_end(tmp_path: Path) -> None:
    make(tmp_path, ["a.py"])
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.py").symlink_to(tmp_path / "self.py")
    (tmp_path / "linked.py").symlink_to(tmp_path / "a.py")
    os.mkfifo(tmp_path / "pipe.py")
    assert found(tmp_path) == ["a.py", "linked.py"]
    assert found(tmp_path, "self.py") == ["self.py"]


def test_each_file_once_and_unknown_paths_refused(tmp_path: Path) -> None:
    make(tmp_path, ["a.py"])
    assert found(tmp_path, "a.py", ".", "a.py") == ["a.py"]
    with pytest.raises(ConfigError, match="does not exist"):
        found(tmp_path, "nothing.py")


def test_an_unclosed_or_reversed_class_is_no_error() -> None:
    assert Patterns(["[z-a].py", "[abc", "!", "/"]).decide("[abc", False) is True
    assert not Patterns([])
