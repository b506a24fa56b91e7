"""Fixes count on no newer PyTorch than the project asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.scan.answering.fixing import fix_source
from conformance.scan.answering.versions import parse_version, required_torch
from conformance.scan.cli import main
from conformance.scan.errors import ConfigError
from conformance.scan.findings import Severity
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES

SYNC = "import torch\ntorch.cuda.synchronize()\n"
FREE = "import torch\ntorch.cuda.empty_cache()\n"
PICK = "import torch\ndevice = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
SEED = "import torch\ntorch.cuda.manual_seed_all(0)\n"
USED = "import torch\nused = torch.cuda.memory_allocated()\n"


@pytest.mark.parametrize(
    ("code", "since"),
    [(SYNC, (2, 6)), (FREE, (2, 9)), (PICK, (2, 7)), (USED, (2, 9))],
)
@pytest.mark.parametrize("torch", [(2, 0), (2, 5), (2, 6), (2, 7), (2, 8), (2, 9), (2, 13)])
def test_a_fix_asks_for_the_accelerator_from_the_version_that_has_what_it_writes(
    code: str, since: tuple[int, int], torch: tuple[int, int]
) -> None:
    fixed = fix_source("m.py", code.encode(), RULES, unsafe=True, torch=torch)
    assert (b".accelerator." in fixed.after) == (torch >= since)
    assert fixed.count > 0
    if torch < since:  # the guarded form, which asks CUDA and MPS in turn
        assert b"torch.cuda.is_available()" in fixed.after
        assert b"torch.backends.mps.is_available()" in fixed.after
    left = analyse("m.py", fixed.after, RULES)
    assert [finding for finding in left if finding.severity > Severity.NOTE] == []


@pytest.mark.parametrize(
    ("code", "torch", "after"),
    [
        (FREE, (1, 13), "if torch.cuda.is_available():\n    torch.cuda.empty_cache()\n"),
        (FREE, (2, 1), "if torch.backends.mps.is_available():\n    torch.mps.empty_cache()\nelif torch.cuda.is_available():\n    torch.cuda.empty_cache()\n"),
        (PICK, (1, 12), 'device = ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")\n'),
        (PICK, (1, 11), PICK.partition("\n")[2]),
        (SEED, (1, 0), "torch.manual_seed(0)\n"),
    ],
)  # fmt: skip
def test_an_older_torch_gets_the_guarded_form(
    code: str, torch: tuple[int, int], after: str
) -> None:
    fixed = fix_source("m.py", code.encode(), RULES, unsafe=True, torch=torch)
    assert fixed.after.decode() == "import torch\n" + after


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("pyproject.toml", '[project]\ndependencies = ["numpy", "torch>=2.4"]', (2, 4)),
        ("pyproject.toml", '[project]\ndependencies = ["torch >= 2.4.1, < 3 ; python_version > \'3\'"]', (2, 4)),
        ("pyproject.toml", '[project.optional-dependencies]\ngpu = ["torch~=2.6.0"]', (2, 6)),
        ("pyproject.toml", '[tool.poetry.dependencies]\ntorch = "^2.3"', (2, 3)),
        ("pyproject.toml", '[tool.poetry.dependencies]\ntorch = {version = ">=2.5", optional = true}', (2, 5)),
        ("pyproject.toml", '[project]\ndependencies = ["torchvision>=0.19", "torch"]', None),
        ("pyproject.toml", "= not toml", None),
        ("requirements.txt", "# torch>=1.0\ntorch==2.1.0+cu118\n", (2, 1)),
        ("requirements-gpu.txt", "torch[opt]>=2.2\n", (2, 2)),
        ("requirements.txt", "torch<2.5\n", None),
        ("setup.cfg", "[options]\ninstall_requires =\n  numpy\n  torch>=1.13\n", (1, 13)),
        ("pyproject.toml", '[dependency-groups]\ngpu = ["torch>=2.3", {include-group = "x"}]', (2, 3)),
        ("uv.lock", '[[package]]\nname = "torch"\nversion = "2.4.1+cu121"\n', (2, 4)),
        ("poetry.lock", '[[package]]\nname = "torchvision"\nversion = "0.1"\n\n[[package]]\nname = "torch"\nversion = "2.2.0"\n', (2, 2)),
        ("Pipfile.lock", '{"default": {"torch": {"hashes": ["x"], "version": "==2.1.2"}}}', (2, 1)),
        ("requirements.lock", "torch==2.6.0 \\\n  --hash=sha256:0\n", (2, 6)),
        ("environment.yml", "dependencies:\n  - pytorch::pytorch=2.0.1\n  - pytorch-cuda=11.7\n", (2, 0)),
        ("setup.py", 'setup(install_requires=["numpy", "torch>=2.0.1"])\n', (2, 0)),
    ],
)  # fmt: skip
def test_the_projects_own_requirement_is_read(
    tmp_path: Path, name: str, text: str, found: tuple[int, int] | None
) -> None:
    (tmp_path / name).write_text(text)
    assert required_torch(tmp_path) == found


def test_the_lowest_bound_counts(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch>=2.9\n")
    (tmp_path / "setup.py").write_text("setup(install_requires=['torch>=2.4'])")
    assert required_torch(tmp_path) == (2, 4)


def test_the_command_takes_the_projects_version_or_the_one_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch>=2.4"]\n')
    file = tmp_path / "m.py"
    file.write_text(FREE)
    assert main(["--fix", "m.py"]) == 0
    assert "torch.mps.empty_cache()" in file.read_text()
    file.write_text(FREE)
    assert main(["--fix", "--torch-version", "2.9", "m.py"]) == 0
    assert "torch.accelerator.empty_cache()" in file.read_text()
    assert main(["--torch-version", "new", "m.py"]) == 2
    assert "expected a version such as 2.6" in capsys.readouterr().err


def test_versions_are_two_numbers() -> None:
    assert [parse_version(text) for text in ("2.6", "2.6.1", "2.10.0+cu126")] == [
        (2, 6), (2, 6), (2, 10),
    ]  # fmt: skip
    with pytest.raises(ConfigError):
        parse_version("2")
