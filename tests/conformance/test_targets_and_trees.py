"""Targets that are chosen or refused, trees that are found, and expectations that are read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from conformance import expect, targets, tree
from conformance.targets import Target, TargetError, choose

LINUX = {
    "cpu": Target("cpu", "cpu", True, "the host"),
    "cuda": Target("cuda", "cuda", False, "this PyTorch is built without CUDA"),
    "mps": Target("mps", "mps", False, "this PyTorch is built without MPS"),
    "mps-sim": Target("mps-sim", "mps", True, "simulated"),
}
MAC = LINUX | {
    "mps": Target("mps", "mps", True, "Apple GPU"),
    "mps-sim": Target("mps-sim", "mps", False, "this machine has the real device"),
}
WITH_MLX = LINUX | {"mlx-cpu": Target("mlx-cpu", "cpu", True, "MLX on the host", "mlx")}
METAL = Target("mlx-metal", "mps", True, "MLX on Metal", "mlx")


@pytest.mark.parametrize(
    ("asked", "here", "expected"),
    [
        ([], LINUX, ["cpu"]),
        (["auto"], LINUX, ["cpu"]),
        (["auto"], MAC, ["mps"]),
        (["all"], LINUX, ["cpu", "mps-sim"]),
        (["all"], MAC, ["cpu", "mps"]),
        (["mps-sim,cpu"], LINUX, ["cpu", "mps-sim"]),
        (["mps-sim", " CPU "], LINUX, ["cpu", "mps-sim"]),
        (["cpu", "cpu,all"], LINUX, ["cpu", "mps-sim"]),
        (["mlx"], WITH_MLX, ["mlx-cpu"]),
        (["mlx"], MAC | {"mlx-metal": METAL}, ["mlx-metal"]),
        (["all"], WITH_MLX, ["cpu", "mps-sim"]),
        (["mlx-cpu,cpu"], WITH_MLX, ["cpu", "mlx-cpu"]),
    ],
)
def test_choice(asked: list[str], here: dict[str, Target], expected: list[str]) -> None:
    assert [target.name for target in choose(asked, here)] == expected


@pytest.mark.parametrize(
    ("name", "here", "told"),
    [
        ("mps", LINUX, "here: cpu, mps-sim; use --device=mps-sim"),
        ("cuda", LINUX, "built without CUDA"),
        ("cuda", MAC, "here: cpu, mps; use --device=auto"),
        ("mps-sim", MAC, "this machine has the real device"),
        ("mlx", LINUX, "pip install 'acestep[mlx]'"),
        ("tpu", LINUX, "unknown; choose from cpu, cuda, mps, mps-sim, mlx, auto, all"),
    ],
)
def test_absent_or_unknown(name: str, here: dict[str, Target], told: str) -> None:
    with pytest.raises(TargetError, match=f"--device={name}") as caught:
        choose([name], here)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_this_machine() -> None:
    found = targets.find()
    assert set(found) == set(targets.NAMES)
    assert found["cpu"].present
    assert not found["cpu"].simulated
    assert found["mps-sim"].simulated
    with found["cpu"].activate():
        assert all(target.detail for target in found.values())
    before = os.environ.get("ACESTEP_ENGINE")
    assert not found["mlx-cpu"].simulated
    with found["mlx-cpu"].activate():
        assert os.environ["ACESTEP_ENGINE"] == "mlx"
    assert os.environ.get("ACESTEP_ENGINE") == before


def test_a_tree_is_found_by_root_package_or_src(tmp_path: Path) -> None:
    (tmp_path / "a" / "acestep").mkdir(parents=True)
    (tmp_path / "b" / "src" / "acestep").mkdir(parents=True)
    assert tree.locate(tmp_path / "a").root == tmp_path / "a"
    assert tree.locate(tmp_path / "a" / "acestep").root == tmp_path / "a"
    assert tree.locate(tmp_path / "b").root == tmp_path / "b" / "src"
    assert not tree.locate(tmp_path / "a").own
    assert tree.locate(None).own
    with pytest.raises(tree.TreeError, match="no folder 'acestep'"):
        tree.locate(tmp_path)


def test_modules_are_found_by_their_files(tmp_path: Path) -> None:
    package = tmp_path / "acestep"
    for name in ("a.py", "_b.py", "inner/__init__.py", "inner/c.py", "not-a-name.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    found = tree.Tree(tmp_path, own=False)
    assert found.module_names() == ["acestep.a", "acestep.inner", "acestep.inner.c"]
    assert found.has_module("acestep.inner")
    assert not found.has_module("acestep.d")


def test_only_this_tree_answers(tmp_path: Path) -> None:
    """The finder speaks for one package, and lets no other place speak for it."""
    (tmp_path / "acestep").mkdir()
    finder = tree.TreeFinder(tree.Tree(tmp_path, own=False))
    assert finder.find_spec("json") is None
    assert finder.find_spec("acesteps") is None
    spec = finder.find_spec("acestep")
    assert spec is not None
    assert list(spec.submodule_search_locations or []) == [str(tmp_path / "acestep")]
    with pytest.raises(ModuleNotFoundError, match=r"acestep\.device"):
        finder.find_spec("acestep.device", [str(tmp_path / "acestep")])


def test_installing_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "acestep").mkdir()
    (tmp_path / "acestep" / "only_here.py").write_text("VALUE = 3\n")
    (tmp_path / "acestep" / "bad.py").write_text("1 / 0\n")
    (tmp_path / "acestep" / "page.py").write_text("import no_such_page\n")
    mine = tree.Tree(tmp_path, own=False)
    for _ in range(2):
        tree.install(mine)
    assert sum(isinstance(finder, tree.TreeFinder) for finder in sys.meta_path) == 1
    module = tree.load(mine, "only_here")
    assert tree.attribute(module, "VALUE.real") == 3
    assert module in list(tree.loaded_modules(mine))
    with pytest.raises(tree.Absent, match="has no OTHER"):
        tree.attribute(module, "OTHER")
    with pytest.raises(tree.Absent, match=r"no acestep\.handler"):
        tree.load(mine, "handler")
    with pytest.raises(tree.ImportFailed, match="ZeroDivisionError"):
        tree.load(mine, "bad")
    with pytest.raises(tree.ImportFailed, match="no module named 'no_such_page'"):
        tree.load(mine, "page")
    with pytest.raises(tree.Absent, match="needs no_such_page"):
        tree.load(mine, "page", optional="no_such_page")


def test_expectations(tmp_path: Path) -> None:
    file = tmp_path / "known.txt"
    file.write_text(
        "# known failures\n\ntest_a.py::test_b[x-1]  # no mps yet\ntest_a.py::* @cuda  # driver\n"
    )
    first, second = expect.read(file)
    assert first.matches("test_a.py::test_b[x-1]", "cpu")
    assert not first.matches("test_a.py::test_b[x-2]", "cpu")
    assert second.matches("test_a.py::test_c", "cuda")
    assert not second.matches("test_a.py::test_c", "cpu")
    assert (second.reason, second.line) == ("driver", 4)
    file.write_text("test_a.py::test_b[warm piano] @mps-sim  # [frozen] acestep/a.py:3: broke\n")
    (third,) = expect.read(file)
    assert third.matches("test_a.py::test_b[warm piano]", "mps-sim")
    assert not third.differs("acestep/a.py:14", "broke")
    assert third.differs("acestep/b.py:3", "broke")
    assert third.differs("acestep/a.py:3", "broke otherwise") == "acestep/a.py:3: broke"
    assert not second.differs("anywhere", "anything")


@pytest.mark.parametrize("line", ["test_a.py::test_b", "a @cuda b # why", "a @cuda #"])
def test_expectations_need_a_reason(tmp_path: Path, line: str) -> None:
    file = tmp_path / "known.txt"
    file.write_text(line)
    with pytest.raises(expect.ExpectError, match="line 1"):
        expect.read(file)
    with pytest.raises(expect.ExpectError, match="No such file"):
        expect.read(tmp_path / "absent.txt")


def test_an_mlx_that_cannot_be_loaded_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlx.core")
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    found = targets._of_mlx(cuda=True, mps=False)
    assert not any(target.present for target in found.values())
    with pytest.raises(TargetError, match="cannot be loaded"):
        choose(["mlx"], LINUX | found)
