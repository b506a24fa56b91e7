"""Trees in three layouts: whole ones pass, and each planted defect is caught at its line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from trees_made import DEVICES, LAYOUTS, QUESTIONS, tree

# A song has tests of its own.
FACTS = [fact for fact in QUESTIONS if fact != "A1"]
OLD = '["auto", "cuda", "cpu"]'
ONLY_CUDA = '"cuda" if torch.cuda.is_available() else "cpu"'

# (what is wrong, the part, its change, the fact, the target, text of the line that is named)
DEFECTS: tuple[tuple[str, str, dict[str, str], str, str, str], ...] = (
    ("forced onto CUDA", "scorer", {"placed": 'torch.as_tensor(energy_matrix).to("cuda")'}, "S1", "cpu", '"cuda"'),
    ("float64 on mps", "scorer", {"placed": "torch.as_tensor(energy_matrix).double()"}, "S1", "mps-sim", "double"),
    ("a wrong score", "scorer", {"result": "{'lyrics_score': score / 2}"}, "S1", "cpu", "class MusicLyricScorer"),
    ("all but the CPU is CUDA", "placement", {"test": 'tensor.device.type == ("cpu" if wanted == "cpu" else "cuda")'}, "S2", "cpu", "return tensor"),
    ("always there", "placement", {"test": "tensor is not None"}, "S2", "cpu", "return tensor"),
    ("raises on xpu", "placement", {"test": '{"cpu": 1, "cuda": 2, "mps": 3, "meta": 4}[wanted] and tensor.device.type == wanted'}, "S2", "mps-sim", "meta"),
    ("command line without mps", "command", {"devices": OLD}, "S3", "cpu", OLD),
    ("page without mps", "page", {"devices": OLD}, "S3 page", "mps-sim", OLD),
    ("planner knows two devices", "planner", {"best": ONLY_CUDA}, "S4", "mps-sim", ONLY_CUDA),
    ("planner leaves the asked one", "planner", {"used": '"cpu"'}, "S4", "mps-sim", "is_available"),
    ("planner on CUDA", "planner", {"used": '"cuda"'}, "S4", "cpu", "is_available"),
    ("vllm for all, command line", "command", {"backend": '"vllm"'}, "S5", "mps-sim", '"vllm"'),
    ("vllm for all, on the CPU", "command", {"backend": '"vllm"'}, "S5", "cpu", '"vllm"'),
    ("vllm for all, page", "page", {"backend": '"vllm"'}, "S5 page", "mps-sim", "backend_value ="),
    ("an Apple GPU is none", "memory", {"otherwise": "return 0.0"}, "S6", "mps-sim", "is_available"),
    ("less than none", "memory", {"otherwise": "return -1.0"}, "S6", "mps-sim", "is_available"),
    ("autocast for CUDA", "trainer", {"cast": 'torch.autocast("cuda", dtype=torch.bfloat16)'}, "S7", "cpu", '"cuda"'),
    ("autocast by CUDA's module", "trainer", {"cast": "torch.cuda.amp.autocast()"}, "S7", "mps-sim", "amp"),
    ("autocast for the CPU", "trainer", {"cast": 'torch.autocast("cpu", dtype=torch.bfloat16)'}, "S7", "mps-sim", '"cpu"'),
    ("service knows two devices", "handler", {"best": ONLY_CUDA}, "A2", "mps-sim", ONLY_CUDA),
)  # fmt: skip


@pytest.mark.parametrize("target", ["cpu", "mps-sim"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_tree_passes(verdicts: Any, tmp_path: Path, layout: str, target: str) -> None:
    # A page costs more than all else: one of them is made on each device.
    asked = [fact for fact in FACTS if "page" not in fact or layout == "late"]
    found = verdicts(tree(tmp_path / layout, layout), target, *asked)
    assert {fact: outcome for fact, (outcome, _, _) in found.items()} == dict.fromkeys(
        found, "pass"
    ), found
    part = {"S1": "scorer", "S2": "placement", "S6": "memory", "S7": "trainer"}
    for fact, name in part.items():
        assert found[fact][1].startswith(f"acestep/{LAYOUTS[layout][name]}:"), found[fact]


@pytest.mark.parametrize(
    ("defect", "layout"),
    list(zip(DEFECTS, itertools.cycle(LAYOUTS), strict=False)),
    ids=[defect[0].replace(" ", "-") for defect in DEFECTS],
)
def test_a_planted_defect_is_named(
    verdicts: Any, tmp_path: Path, defect: tuple[Any, ...], layout: str
) -> None:
    _, part, change, fact, target, text = defect
    root = tree(tmp_path / "tree", layout, **{part: change})
    found = verdicts(root, target, fact, *(f for f in FACTS if "page" not in f))
    outcome, place, sentence = found[fact]
    assert [f for f in found if found[f][0] != "pass"] == [fact], found
    assert outcome == "fail", sentence
    file, _, line = place.rpartition(":")
    assert file == f"acestep/{LAYOUTS[layout][part]}", sentence
    assert text in (root / file).read_text().splitlines()[int(line) - 1], place


def test_what_a_tree_lacks_is_absent(verdicts: Any, tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", "late", without=("scorer", "page", "memory"))
    found = verdicts(root, "cpu", "S1", "S3 page", "S6", "S7")
    assert [found[fact][0] for fact in found] == ["absent", "absent", "absent", "pass"]


def test_a_missing_library_decides_nothing_or_blocks(verdicts: Any, tmp_path: Path) -> None:
    """A logger may be missing; what a missing library would have to answer is not decided."""
    extra = "from no_such_logger import logger\nlogger.info('imported')"
    root = tree(tmp_path / "a", "first", extra=extra)
    found = verdicts(root, "mps-sim", "S2", "S6", "S7")
    assert [found[fact][0] for fact in found] == ["pass"] * 3, found
    told = {"otherwise": "return no_such_logger.memory() and 8.0"}
    root = tree(tmp_path / "b", "first", extra="import no_such_logger", memory=told)
    assert verdicts(root, "mps-sim", "S6")["S6"][:1] == ("blocked",)


def test_a_broken_import_is_told_with_its_chain(verdicts: Any, tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", "first")
    (root / "acestep" / "placing.py").write_text("from acestep.gpu_config import no_such_name\n")
    outcome, _, sentence = verdicts(root, "cpu", "S2")["S2"]
    assert outcome == "broken"
    assert "cannot import name 'no_such_name'" in sentence
    assert "acestep/placing.py:1 < acestep/handler.py:2" in sentence


def test_an_import_that_ends_the_program_is_broken(verdicts: Any, tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", "first", extra="raise SystemExit('no GPU')")
    outcome, _, sentence = verdicts(root, "cpu", "S6")["S6"]
    assert outcome == "broken"
    assert sentence.endswith("it ends the program (no GPU) at acestep/gpu_config.py:2"), sentence


def test_test_files_odd_escapes_and_deprecations_are_not_judged(
    verdicts: Any, tmp_path: Path
) -> None:
    root = tree(
        tmp_path / "tree",
        "late",
        extra='import warnings\nwarnings.warn("old", DeprecationWarning)\nODD = "\\d"',
    )
    for name in ("gpu_config_test.py", "test_memory.py"):
        (root / "acestep" / name).write_text(
            "def memory_total():\n    total_memory\nraise SystemExit\n"
        )
    found = verdicts(root, "mps-sim", "S6", "S1")
    assert [found[fact][0] for fact in found] == ["pass", "pass"], found


def test_a_scorer_may_return_one_number(verdicts: Any, tmp_path: Path) -> None:
    for number, result in enumerate(
        ("score", "{'score': score}", "type('R', (), {'lyrics_score': score})()")
    ):
        root = tree(tmp_path / str(number), "first", scorer={"result": result})
        assert verdicts(root, "cpu", "S1")["S1"][0] == "pass"


def test_a_choice_may_hold_more_than_ours(verdicts: Any, tmp_path: Path) -> None:
    more = DEVICES.replace('"mps"', '"xpu", "mps", "npu"')
    root = tree(tmp_path / "tree", "split", command={"devices": more})
    assert verdicts(root, "cpu", "S3")["S3"][0] == "pass"
