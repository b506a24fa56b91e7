"""The script that runs other projects' suites compares two runs and explains what changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.simulate import foreign

HOST = """<testsuites><testsuite>
<testcase classname="t.A" name="test_a[cpu]" time="1"/>
<testcase classname="t.A" name="test_b[cpu]" time="1"/>
<testcase classname="t.A" name="test_c[cpu]" time="1"/>
<testcase classname="t.A" name="test_d[cpu]" time="1"/>
<testcase classname="t.A" name="test_e[cpu]" time="1"/>
<testcase classname="t.A" name="test_f[cpu]" time="1"><failure message="no">x</failure></testcase>
</testsuite></testsuites>"""
FAILURES = {
    "b": "NotImplementedError: no\n[mps-sim] simulated failure 'missing-operator', raised",
    "c": "RuntimeError: two\n[mps-sim] simulated failure 'mixed-devices', raised",
    "d": "[mps-sim] torch.export of tensors on the device is not simulated: what traces knows",
    "e": "AssertionError: 1 != 2",
    "f": "no",
}


def compared(folder: Path, *reasons: foreign.Reason) -> foreign.Comparison:
    cases = "".join(
        f'<testcase classname="t.A" name="test_{name}[mps]" time="2">'
        f'<failure message="">{text}</failure></testcase>'
        for name, text in FAILURES.items()
    )
    device = (
        f'<testsuite><testcase classname="t.A" name="test_a[mps]" time="2"/>{cases}</testsuite>'
    )
    for name, text in (("cpu", HOST), ("mps", device)):
        (folder / name).write_text(text)
    runs = [foreign.results(folder / name) for name in ("cpu", "mps")]
    return foreign.Comparison(runs[0], runs[1], reasons)


def test_each_change_is_of_one_kind(tmp_path: Path) -> None:
    found = compared(tmp_path)
    kinds = {kind: tests for (kind, _), tests in found.changed.items()}
    assert kinds == {
        foreign.LIMIT: ["t.A::test_b[<device>]"],
        foreign.ASSUMPTION: ["t.A::test_c[<device>]"],
        foreign.NOT_SHOWN: ["t.A::test_d[<device>]"],
        foreign.UNEXPLAINED: ["t.A::test_e[<device>]"],
    }
    offline = "OSError: a/b does not appear to have a file named config.json."
    assert found.explained("t.A::test_f", offline)[0] == foreign.DOWNLOAD
    assert found.unexplained == ["t.A::test_e[<device>]"]
    text = "\n".join(found.lines())
    assert "6 s on the CPU, 12 s simulated (2.00 x)" in text
    assert "     4  passed on the CPU, failed simulated" in text


def test_a_reason_explains_only_what_it_names(tmp_path: Path) -> None:
    why = "https://example.org"
    assert not compared(
        tmp_path, foreign.Reason("test_e", "1 != 2", foreign.ASSUMPTION, why)
    ).unexplained
    assert compared(tmp_path, foreign.Reason("test_e", "3", foreign.LIMIT, why)).unexplained


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert foreign.main(["kornia", "--sources", str(tmp_path), "tests/color"]) == 2
    said = capsys.readouterr().err
    assert "expected https://github.com/kornia/kornia at b4f5a78" in said
    assert "kornia_rs installed" in said
    assert all(suite.repository.startswith("https://") for suite in foreign.SUITES.values())
    assert all("https://" in r.why for suite in foreign.SUITES.values() for r in suite.reasons)
