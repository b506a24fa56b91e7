"""What the suite once held against trees that had done nothing, each on a tree made for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees_made import tree

from conformance.entrypoints import applying, missing, survey
from conformance.recorder import Recorder
from conformance.targets import find
from conformance.tree import Tree, install


def phase(when: str, outcome: str, message: str, place: str) -> pytest.TestReport:
    """One phase of a case, as the plugin hands it to the recorder."""
    data = {"phase": when, "name": "test_facts.py::test_x", "target": "cpu", "outcome": outcome}
    data |= {"message": message, "place": place}
    told = {"rows": ["S1"], "absent_rows": [], "touches": [], "library": {}, "missing": []}
    told |= {"network": [], "shares": {}, "acts": []}
    return pytest.TestReport(
        nodeid="test_x",
        location=("test_x.py", 1, "test_x"),
        keywords={},
        outcome="failed" if outcome == "fail" else "passed",
        longrepr=None,
        when=when,  # type: ignore[arg-type]
        user_properties=[("conformance", data | told)],
        duration=0.5,
    )


def test_what_failed_first_survives_the_teardown(tmp_path: Path) -> None:
    recorder = Recorder(Tree(tree(tmp_path / "tree", "first"), own=False), [find()["cpu"]])
    recorder.add(phase("setup", "pass", "", ""))
    recorder.add(phase("call", "fail", "no score", "acestep/dit_alignment_score.py:11"))
    recorder.add(phase("teardown", "fail", "touched CUDA", "acestep/handler.py:2"))
    (case,) = recorder.cases.values()
    assert (case.outcome, case.message) == ("fail", "no score")
    assert case.place == "acestep/dit_alignment_score.py:11"
    assert case.seconds == 1.5


@pytest.mark.usefixtures("other_trees")
def test_what_no_page_keeps_from_being_seen_is_not_excused_in_vain(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", "first", without=("scorer", "planner", "trainer"))
    page = root / "acestep" / "gradio_ui" / "interfaces" / "generation.py"
    page.write_text(page.read_text().replace("import gradio", "import no_such_page"))
    made = Tree(root, own=False)
    install(made)
    surface = survey(made)
    excused = {"shown": ["gradio_ui.interfaces.generation:create_generation_section"]}
    assert list(surface.unimportable) == ["acestep.gradio_ui.interfaces.generation"]
    covered = list(surface.callables)
    assert missing(covered, covered, applying(excused, surface.unimportable)) == ([], [])
    assert missing(covered, covered, applying(excused, []))[1] == excused["shown"]
