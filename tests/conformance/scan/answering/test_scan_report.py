"""Reports: their shape, their schema, and names that try to break out of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from conformance.scan.answering.report import reporter
from conformance.scan.answering.report.text import printable, statistics
from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.analysis import analyse, failure
from conformance.scan.judging.rules import RULES

# From the schema store (Apache-2.0), without its descriptions.
SCHEMA = json.loads(
    (Path(__file__).parent / "data" / "sarif-2.1.0.schema.json").read_text(encoding="utf-8")
)
CODE = """import torch
def f(x):
\tdevice = '變'; x.cuda()
torch.load(
    'x',
)
"""
EVIL = 'a\n::error::b,c:d%\x1b[31m\udcff<&">\u202e.py'


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    found = analyse("pkg/module.py", CODE.encode(), RULES)
    assert [finding.code for finding in found] == ["DEV101", "DEV114"]
    return [*found, failure("broken.py", 3, "syntax error: bad")]


def test_concise_is_one_line_a_finding(findings: list[Finding]) -> None:
    lines = reporter("concise")(findings).splitlines()
    assert lines[0] == "pkg/module.py:3:16: DEV101 error: device 'cuda' is hard-coded in .cuda()"
    assert len(lines) == len(findings)


def test_full_underlines_the_place_and_gives_why_and_fix(findings: list[Finding]) -> None:
    blocks = reporter("full")(findings).split("\n\n")
    assert "3 |  device = '變'; x.cuda()" in blocks[0]
    # A wide character takes two columns.
    assert "  | " + " " * 16 + "^" * 8 in blocks[0]
    assert "why: " in blocks[0]
    assert "fix: " in blocks[0]
    assert "^" * len("torch.load(") in blocks[1]


def test_full_cuts_a_very_long_line() -> None:
    code = b"import torch\nx = '" + b"a" * 390 + b"'; torch.cuda.synchronize()"
    shown = reporter("full")(analyse("m.py", code, RULES)).splitlines()
    assert max(map(len, shown[:4])) < 200


def test_json_gives_every_field(findings: list[Finding]) -> None:
    rows = json.loads(reporter("json")(findings))
    assert rows[0]["line"] == 3
    assert rows[0]["severity"] == "error"
    assert rows[1]["fix"]["edits"][0]["text"].startswith(", map_location=")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_sarif_meets_the_schema(findings: list[Finding], count: int) -> None:
    log = json.loads(reporter("sarif")(findings[:count]))
    jsonschema.validate(log, SCHEMA)
    run = log["runs"][0]
    assert len(run["results"]) == count
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_sarif_schema_refuses_a_damaged_log(findings: list[Finding]) -> None:
    log = json.loads(reporter("sarif")(findings))
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, SCHEMA)


def test_sarif_fingerprints_tell_equal_findings_apart_and_ignore_lines(
    findings: list[Finding],
) -> None:
    one = findings[0]
    twice = json.loads(reporter("sarif")([one, replace(one, line=90, end_line=90)]))
    moved = json.loads(reporter("sarif")([replace(one, line=50, end_line=50)]))
    marks = [r["partialFingerprints"]["conformanceScan/v1"] for r in twice["runs"][0]["results"]]
    assert marks[0] != marks[1]
    assert moved["runs"][0]["results"][0]["partialFingerprints"]["conformanceScan/v1"] == marks[0]


def test_github_annotates_the_lines(findings: list[Finding]) -> None:
    lines = reporter("github")(findings).splitlines()
    assert lines[0].startswith(
        "::error file=pkg/module.py,line=3,endLine=3,title=DEV101,col=16,endColumn=24::DEV101 "
    )
    assert lines[1].startswith("::warning file=pkg/module.py,line=4,endLine=6,title=DEV114::")
    note = replace(findings[0], severity=Severity.NOTE)
    assert reporter("github")([note]).startswith("::notice ")


def test_junit_has_a_case_a_finding_and_one_when_clean(findings: list[Finding]) -> None:
    root = ET.fromstring(reporter("junit")(findings))
    assert root.get("failures") == "3"
    assert len(root.findall(".//failure")) == 3
    assert ET.fromstring(reporter("junit")([])).get("tests") == "1"


@pytest.mark.parametrize("name", ["concise", "full", "json", "sarif", "github", "junit"])
def test_no_file_name_breaks_out_of_a_report(findings: list[Finding], name: str) -> None:
    evil = [replace(findings[0], path=EVIL, message=EVIL)]
    text = reporter(name)(evil)
    assert "\x1b" not in text
    assert "\u202e" not in text or name == "junit"
    match name:
        case "json":
            assert json.loads(text)[0]["path"] == EVIL
        case "sarif":
            jsonschema.validate(json.loads(text), SCHEMA)
        case "junit":
            assert ET.fromstring(text)[0].get("name", "").startswith("a\n::error::b")
        case _:
            assert not any(line.startswith("::error::") for line in text.splitlines())
    if name == "github":
        assert text.count("\n") == 1


def test_notebook_places_and_statistics(findings: list[Finding]) -> None:
    cell = replace(findings[0], cell=2, cell_line=1)
    assert ":cell 2:1:3:" in reporter("concise")([cell])
    assert statistics(findings).split()[:2] == ["1", "DEV000"]
    assert printable("plain") == "plain"
    with pytest.raises(KeyError):
        reporter("html")
