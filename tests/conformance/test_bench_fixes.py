"""The benchmark of fixes: a project is mended in a copy, and a fix that breaks it is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.bench import fixes, written


def test_a_project_is_mended_in_a_copy_and_imported_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "pkg").mkdir(parents=True)
    (project / "requirements.txt").write_text("torch>=2.1\n")
    (project / "pkg" / "__init__.py").write_text("")
    ops = project / "pkg" / "ops.py"
    code = 'import torch\nfrom no_such_package import Thing, decorate\nfrom pkg.more import x\nclass A(Thing):\n    size: Thing[int, "3"]\ntorch.cuda.empty_cache()\n'
    ops.write_text(code)
    (project / "pkg" / "more.py").write_text("import torch\nx = torch.load('no such file')\n")
    assert fixes.main([str(project)]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == "| project | 2.1 | 2 | 2 | 0 | 0 | 0 |"
    assert ops.read_text() == code
    (project / "pkg" / "more.py").write_text("x = 1\n")
    assert fixes.main([str(project)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "| project | 2.1 | 1 | 1 | 1 | 1 | 0 |"
    # The newest form does not suit so old a PyTorch: what it would break is seen.
    monkeypatch.setattr(fixes, "mend", _as_for_a_new_torch)
    assert fixes.main([str(project)]) == 1
    row, said = capsys.readouterr().out.splitlines()[-2:]
    assert row == "| project | 2.1 | 1 | 1 | 1 | 0 | 1 |"
    assert "AttributeError" in said
    assert "accelerator" in said


def _as_for_a_new_torch(folder: Path) -> fixes.Project:
    file = folder / "pkg" / "ops.py"
    file.write_text(file.read_text().replace("torch.cuda.empty", "torch.accelerator.empty"))
    return fixes.Project(folder.name, (2, 1), ["pkg/ops.py"], 1)


def test_what_fixes_write_is_checked_without_running_the_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "pkg").mkdir(parents=True)
    ops = project / "pkg" / "ops.py"
    code = (
        "import torch\nraise SystemExit('not to be run')\ntorch.cuda.empty_cache()\n"
        "model.to('cuda')\nstate = torch.load('x.pt')\n"
    )
    ops.write_text(code)
    assert written.main([str(project)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| project | any | 1 | 3 | 1 | ")
    # What the asked PyTorch lacks, names that nothing binds, and expressions that raise.
    (project / "requirements.txt").write_text("torch>=2.1\n")

    def wrong(folder: Path) -> fixes.Project:
        bad = "torch.device(3.5 if torch.cuda.is_available() else None)"
        (folder / "pkg" / "ops.py").write_text(
            f"import torch\ntorch.accelerator.synchronize()\nx.to(picked)\ny = {bad}\n"
        )
        return fixes.Project(folder.name, (2, 1), ["pkg/ops.py"], 1)

    monkeypatch.setattr(written, "mend", wrong)
    assert written.main([str(project)]) == 1
    said = capsys.readouterr().out
    assert "module 'torch' has no attribute 'accelerator'" in said
    assert "the fix writes picked, which nothing binds" in said
    assert "torch.device(3.5" in said
    assert "TypeError" in said
