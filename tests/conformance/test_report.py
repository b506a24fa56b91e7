"""Reports: the matrix, every format, merging, and the command that shows them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conformance import report_cli, report_pages
from conformance.report import Case, Machine, Part, Report, ReportError, from_json, merge


def part(os: str, targets: list[str], outcomes: dict[str, str]) -> Part:
    """A run in which each row has one case a target."""
    machine = Machine(os, "3.12", {"torch": "2.11"}, dict.fromkeys(targets, "here"), "/tree", "now")
    cases = [
        Case(f"test_x.py::test_{row}", target, outcome, 0.5, [row], [], "broke | it", "acestep/a.py:3",
             ["acestep/a.py:3 in f: torch.cuda.init: <b>x</b>"] if outcome == "fail" else [],
             {"torch.cuda.is_available @ lib/x.py:1": 2})
        for row, outcome in outcomes.items()
        for target in targets
    ]  # fmt: skip
    return Part(machine, cases)


LINUX = part("Linux 6", ["cpu", "mps-sim"], {"S1": "pass", "S2": "fail", "handler:A.b": "absent"})
MAC = part("macOS 15", ["cpu", "mps"], {"S1": "pass", "S2": "pass", "S10": "pass"})


def test_matrix() -> None:
    found = Report([LINUX])
    assert found.headings() == ["cpu", "mps-sim"]
    assert list(found.matrix()) == ["S1", "S2", "handler:A.b"]
    assert found.matrix()["S2"] == ["fail", "fail"]
    assert found.counts() == {"fail": 2, "pass": 2, "absent": 2}


def test_a_row_is_as_bad_as_its_worst_case() -> None:
    cases = [Case(f"t{n}", "cpu", o, 0, ["S1"]) for n, o in enumerate(["absent", "pass"])]
    machine = LINUX.machine
    assert Report([Part(machine, cases)]).matrix()["S1"] == ["pass", "-"]
    cases.append(Case("t2", "cpu", "fail (expected)", 0, ["S1"]))
    assert Report([Part(machine, cases)]).matrix()["S1"] == ["fail (expected)", "-"]
    cases.append(Case("t3", "", "fail", 0, ["S1"]))
    assert Report([Part(machine, cases)]).matrix()["S1"] == ["fail", "fail"]
    lacking = [Case("t", "cpu", "pass", 0, ["S1", "a:b"], ["a:b"])]
    assert Report([Part(machine, lacking)]).matrix() == {
        "S1": ["pass", "-"],
        "a:b": ["absent", "-"],
    }


def test_machines_side_by_side(tmp_path: Path) -> None:
    for name, one in (("a", LINUX), ("b", MAC)):
        report_pages.write(Report([one]), tmp_path / f"{name}.json")
    both = merge(from_json(tmp_path / f"{name}.json") for name in "ab")
    assert both == Report([LINUX, MAC])
    assert both.headings() == ["cpu (Linux 6, #1)", "cpu (macOS 15, #2)", "mps", "mps-sim"]
    assert both.matrix()["S2"] == ["fail", "pass", "pass", "fail"]
    assert both.matrix()["S10"] == ["-", "pass", "pass", "-"]
    assert both.library_touches() == {"torch.cuda.is_available @ lib/x.py:1": 24}


class Tags(HTMLParser):
    """Counts tags, and notes what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag == "meta" else [tag]
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_format(tmp_path: Path) -> None:
    found = Report([LINUX, MAC])
    for suffix in report_pages.FORMATS:
        report_pages.write(found, tmp_path / f"report{suffix}")
    page = Tags()
    page.feed((tmp_path / "report.html").read_text())
    assert not page.open
    assert not page.fetched
    assert "<b>x</b>" in page.text
    written = (tmp_path / "report.md").read_text()
    assert "| S2 each device is told from every other | **fail** |" in written
    assert "broke \\| it" in written
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["matrix"]["rows"]["S1"] == ["pass"] * 4
    text = "\n".join(report_pages.text_lines(found))
    assert "FAIL test_x.py::test_S2 [cpu]" in text
    assert "acestep/a.py:3: broke | it" in text
    assert report_pages.text_lines(Report([])) == ["no case ran"]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = tmp_path / "linux.json", tmp_path / "mac.json"
    report_pages.write(Report([LINUX]), bad)
    report_pages.write(Report([MAC]), good)
    assert report_cli.main(["show", str(good)]) == 0
    assert "mps" in capsys.readouterr().out
    out = tmp_path / "both.html"
    assert report_cli.main(["merge", str(bad), str(good), "-o", str(out)]) == 1
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no such file"),
        ("{", "not readable as JSON"),
        ("[]", "not a report"),
        ('{"format": 9}', "report format 9, expected 1"),
        ('{"format": 1, "parts": [{"machine": {}}]}', "not a report"),
    ],
)
def test_what_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, told: str
) -> None:
    file = tmp_path / "report.json"
    if text is not None:
        file.write_text(text)
    assert report_cli.main(["merge", str(file)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_unwritable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    report_pages.write(Report([MAC]), file)
    assert report_cli.main(["show", str(file), "-o", str(tmp_path / "x.pdf")]) == 2
    assert "end the name in .md, .json, .html" in capsys.readouterr().err
    with pytest.raises(ReportError, match="cannot write"):
        report_pages.write(Report([MAC]), file / "below.md")
