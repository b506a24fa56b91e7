"""The suite's own rules: its options, its exits, and that no public callable is forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from conformance.entrypoints import CallLog, missing, survey
from conformance.plugin import register_markers
from conformance.suite.declared import declared_by_suite
from conformance.suite.exempt import EXEMPT
from conformance.targets import find
from conformance.tree import locate

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = "test_memory.py::test_a_simulated_size"


def test_an_absent_device_ends_at_once(run_suite: Any) -> None:
    absent = "mps" if not find()["mps"].present else "mps-sim"
    found = run_suite(QUICK, device=absent)
    assert found.status == 4
    (line,) = [text for text in found.log.splitlines() if text.strip()]
    assert f"--device={absent} is not on this machine" in line
    assert "here: cpu" in line


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("tree", "/no/such/folder", "give the root of a checkout"),
        ("expect", "/no/such/file", "No such file"),
        ("conformance_report", "report.pdf", "end the name in"),
    ],
)
def test_bad_options(run_suite: Any, option: str, value: str, told: str) -> None:
    found = run_suite(QUICK, **{option: value})
    assert found.status == 4
    assert told in found.log


def test_header_and_several_targets(run_suite: Any) -> None:
    found = run_suite(QUICK, device="cpu,mps-sim")
    assert found.status == 0, found.log
    assert found.report["matrix"]["columns"] == ["cpu", "mps-sim"]
    assert found.report["matrix"]["rows"]["S6"] == ["pass", "pass"]
    machine = found.report["parts"][0]["machine"]
    assert machine["versions"]["torch"]
    assert machine["tree"] == str(REPOSITORY)


def test_expectations_are_strict_both_ways(run_suite: Any, copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "known.txt"
    name = QUICK.replace("[", "")
    file.write_text(f"{name} @cpu  # does not fail at all\n")
    found = run_suite(QUICK, tree=copy, expect=file)
    assert found.status == 1
    assert "was expected to fail, and passed" in found.failed[0]["message"]

    path = copy / "acestep" / "gpu_config.py"
    path.write_text(path.read_text().replace('"MAX_CUDA_VRAM"', '"NO_SUCH_NAME"'))
    found = run_suite(QUICK, tree=copy, expect=file)
    assert found.status == 0, found.log
    assert found.cases[0]["outcome"] == "fail (expected)"

    file.write_text("test_memory.py::test_nothing  # gone\n")
    found = run_suite(QUICK, tree=copy, expect=file)
    assert found.status == 4
    assert "no case matches line 1" in found.log


def test_every_declaration_is_needed(pytestconfig: pytest.Config) -> None:
    """Without what declares it, any public callable would be reported."""
    # Importing the cases is enough here, for which their markers must be known.
    register_markers(pytestconfig)
    public = list(survey(locate(None)).callables)
    exempt = [name for names in EXEMPT.values() for name in names]
    declared = declared_by_suite()
    assert len(public) > 100
    by_module: dict[str, set[str]] = {}
    for row in declared:
        by_module.setdefault(row.partition(":")[0], set()).add(row)
    assert not any("*" in module for module in by_module)
    for name in set(public) - set(exempt):
        rows = by_module.get(name.partition(":")[0], set())
        covering = {row for row in rows if not missing([name], [row], [])[0]}
        rest = set(declared) - covering
        assert covering, f"{name} is not declared"
        assert missing([name], rest, exempt)[0] == [name]
    for name in exempt:
        left = [other for other in exempt if other != name]
        assert missing([name], declared, left)[0] == [name]


def test_excuses_without_need_are_told() -> None:
    assert missing(["a:b"], ["a:b"], ["a:b"]) == ([], ["a:b"])
    assert missing(["a:b"], [], ["a:c"]) == (["a:b"], ["a:c"])
    assert missing(["a:B.c", "a:B.d"], ["a:B.*"], []) == ([], [])


def test_calls_are_seen() -> None:
    def plain(a: int, b: int = 2, *, c: int = 3) -> tuple[int, int, int]:
        return a, b, c

    def other() -> None:
        return None

    before = plain.__code__
    log = CallLog({"x:plain": (plain,), "x:other": (other,), "x:none": ()})
    with log.watching():
        assert plain(1, c=5) == (1, 2, 5)
        assert plain(1) == (1, 2, 3)
    assert log.uncalled == ["x:other"]
    assert plain.__code__ is before


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{file.name} has changed: {old!r}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_what_is_forgotten_fails_the_suite(run_suite: Any, copy: Path) -> None:
    """A new function, a declaration taken away, and one that promises too much."""
    suite = copy / "conformance" / "suite"
    shutil.copytree(REPOSITORY / "conformance", suite.parent)
    gpu_config = copy / "acestep" / "gpu_config.py"
    gpu_config.write_text(gpu_config.read_text() + "\n\ndef new_and_forgotten() -> None: ...\n")
    edit(suite / "test_decode.py", '    "vae.windows:encoder_halo",\n', "")
    edit(
        suite / "test_memory.py",
        '@covers("S6", "gpu_config:get_gpu_memory_gb")\n',
        '@covers("S6", "gpu_config:get_gpu_memory_gb", "gpu_config:check_duration_limit")\n',
    )
    found = run_suite("test_entrypoints.py", QUICK, tree=copy, suite=suite)
    assert found.status == 1
    told = "no case covers, and no reason excuses: "
    line = next(text for text in found.log.splitlines() if text.startswith("AssertionError"))
    forgotten = line.partition(told)[2].split(", ")
    assert {"vae.windows:encoder_halo", "gpu_config:new_and_forgotten"} <= set(forgotten)
    assert "declares gpu_config:check_duration_limit and did not call it" in found.log
