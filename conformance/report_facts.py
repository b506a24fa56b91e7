"""A report on another tree, for the people of that tree: the facts first, each with its place."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from conformance.report import BLOCKED, BROKEN, FACT_TITLES, FAIL, Case, Report

#: Which outcome of several cases speaks for a fact, the first that is there.
_SPEAKS = (FAIL, "fail (expected)", "pass", BROKEN, BLOCKED, "absent")
_WIDTH, _LONGEST, _SHOWN = 110, 300, 12
_IN = " " * 5
_STARTS = " (would initialise CUDA)"

DISTRIBUTIONS = {
    "vector_quantize_pytorch": "vector-quantize-pytorch",
    "dotenv": "python-dotenv",
    "yaml": "PyYAML",
    "PIL": "pillow",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "git": "GitPython",
    "flash_attn": "flash-attn",
    "pytorch_lightning": "pytorch-lightning",
}
"""Import names whose distribution has another one."""


@dataclass(frozen=True)
class Line:
    """One sentence on a fact: the devices it holds on, the outcome, where and what."""

    devices: str
    outcome: str
    place: str
    sentence: str


@dataclass(frozen=True)
class Fact:
    """One fact: its id and title, a verdict for each device, and what was found."""

    id: str
    title: str
    verdicts: dict[str, str]
    lines: list[Line]


def facts(report: Report) -> list[Fact]:
    """The facts that were asked, in order; sentences that are the same for devices only once."""
    made = []
    for name, cases in report.facts().items():
        devices = list(dict.fromkeys(case.target for case in cases))
        verdicts = {d: _worst([c.outcome for c in cases if c.target == d]) for d in devices}
        said: dict[tuple[str, str, str], list[str]] = {}
        for case in sorted(cases, key=lambda c: (_SPEAKS.index(c.outcome), c.name)):
            if case.outcome == "absent" and verdicts[case.target] != "absent":
                continue
            said.setdefault((case.outcome, case.place, case.message), []).append(case.target)
        lines = [
            Line(", ".join(dict.fromkeys(where)), outcome, place, message)
            for (outcome, place, message), where in said.items()
        ]
        made.append(Fact(name, FACT_TITLES[name], verdicts, lines))
    return made


def opening(report: Report) -> list[str]:
    """What keeps verdicts from being had, once: missing libraries, and tries of the network."""
    lines = []
    if missing := report.missing():
        lines += [f"missing here: {', '.join(missing)}", f"  {pip_line(missing)}"]
    if tries := report.network():
        lines.append("tried the network, and was refused, at:")
        lines += [f"  {place}" for place in list(tries)[:5]]
        lines += [f"  and {len(tries) - 5} more"] if len(tries) > 5 else []
    return lines


def pip_line(libraries: Iterable[str]) -> str:
    """The command that installs these libraries."""
    names = sorted(DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in libraries)
    return f"python -m pip install {' '.join(names)}"


def text(report: Report) -> list[str]:
    """The facts for a terminal: a verdict for each device, then where and what."""
    found = facts(report)
    devices = list(dict.fromkeys(d for fact in found for d in fact.verdicts))
    head = "fact" + " " * 46 + "".join(f"{device:9}" for device in devices)
    lines = [*opening(report), "", head.rstrip()]
    for fact in found:
        cells = "".join(f"{fact.verdicts.get(device, '-'):9}" for device in devices)
        lines.append(f"{fact.id} {fact.title:47}{cells}".rstrip())
        for line in _said(fact, devices):
            lines += textwrap.wrap(line, _WIDTH + 30, initial_indent=_IN, subsequent_indent=_IN * 2)
    broken = {cause: c for cause, c in causes(report).items() if c[0].outcome == BROKEN}
    lines += [f"broken: {cause}" for cause in broken]
    return [*lines, "", *functions(report)]


def areas(report: Report) -> dict[str, tuple[int, int]]:
    """How many of how many of their public functions a run has entered, by area."""
    found: dict[str, list[int]] = {}
    for area, entered, public in modules(report).values():
        count = found.setdefault(area, [0, 0])
        count[0] += entered
        count[1] += public
    return {area: (entered, public) for area, (entered, public) in sorted(found.items())}


def modules(report: Report) -> dict[str, tuple[str, int, int]]:
    """Area, entered and public functions of each of their modules; the best of all devices."""
    found: dict[str, tuple[str, int, int]] = {}
    for case in (case for part in report.parts for case in part.cases):
        for module, (area, entered, public) in case.shares.items():
            before = found.get(module, (area, 0, public))
            found[module] = (area, max(entered, before[1]), public)
    return found


def acts(report: Report) -> list[str]:
    """Lines that act on CUDA when they are called with a little of everything."""
    cases = [case for part in report.parts for case in part.cases]
    lines = dict.fromkeys(line for case in cases for line in case.acts)
    # On another device the same line may have found CUDA started already.
    starts = {line.replace(_STARTS, "") for line in lines if _STARTS in line}
    return [line for line in lines if line not in starts]


def functions(report: Report) -> list[str]:
    """What was entered of their functions, a line each area, and what acts on CUDA there."""
    found = areas(report)
    if not found:
        return []
    entered, public = (sum(pair[n] for pair in found.values()) for n in (0, 1))
    shown = ", ".join(f"{area} {e} of {p}" for area, (e, p) in found.items())
    lines = [f"their public functions entered: {entered} of {public} ({shown})"]
    if told := acts(report):
        lines.append("act on CUDA when called by themselves (told, and not judged):")
        lines += [f"  {line[: _WIDTH + 40]}" for line in told[:_SHOWN]]
        lines += [f"  and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
    return lines


def causes(report: Report) -> dict[str, list[Case]]:
    """The failures by what causes them: the same line of the tree, or the same broken import."""
    grouped: dict[str, list[Case]] = {}
    for case in report.failures():
        cause = case.message if case.outcome == BROKEN else case.place or case.message
        grouped.setdefault(cause, []).append(case)
    return dict(sorted(grouped.items(), key=lambda item: -len(item[1])))


def markdown(report: Report) -> list[str]:
    """The facts and the causes of failures as Markdown."""
    found = facts(report)
    devices = list(dict.fromkeys(d for fact in found for d in fact.verdicts))
    lines = [*(f"- {line.strip()}" for line in opening(report)), ""]
    lines += ["| fact |" + "".join(f" {d} |" for d in devices) + " where and what |"]
    lines += ["| --- |" + " --- |" * (len(devices) + 1)]
    for fact in found:
        cells = "".join(f" {_bold(fact.verdicts.get(device, '-'))} |" for device in devices)
        said = "<br>".join(_said(fact, devices)).replace("|", "\\|")
        lines.append(f"| {fact.id} {fact.title} |{cells} {said} |")
    return [*lines, "", *functions(report)]


def html(report: Report) -> list[str]:
    """The facts and the causes of failures as parts of a page."""
    found, esc = facts(report), escape
    devices = list(dict.fromkeys(d for fact in found for d in fact.verdicts))
    head = "".join(f"<th>{esc(device)}</th>" for device in devices)
    rows = ""
    for fact in found:
        cells = ""
        for device in devices:
            verdict = fact.verdicts.get(device, "-")
            cells += f'<td class="{esc(verdict.partition(" ")[0])}">{esc(verdict)}</td>'
        said = "".join(f"<p>{_said_in_html(line, devices)}</p>" for line in fact.lines)
        rows += f"<tr><th scope=row><b>{fact.id}</b> {esc(fact.title)}</th>{cells}"
        rows += f'<td class="said">{said}</td></tr>\n'
    parts = [f"<pre>{esc(chr(10).join(opening(report)))}</pre>"] if opening(report) else []
    parts.append("<h2>The ten facts</h2>")
    parts.append(
        f"<table><thead><tr><th></th>{head}<th>where and what</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    if grouped := causes(report):
        items = "".join(
            f"<li><code>{esc(cause)}</code>: {esc(cases[0].message)} "
            f"({', '.join(dict.fromkeys(case.target for case in cases))})</li>"
            for cause, cases in grouped.items()
        )
        parts.append(f"<h2>Failures by cause</h2><ul>{items}</ul>")
    return [*parts, *_functions_in_html(report)]


def _functions_in_html(report: Report) -> list[str]:
    """Their public functions by module: how many of how many a run has entered."""
    if not modules(report):
        return []
    rows = "".join(
        f"<tr><td>{escape(area)}</td><td><code>{escape(name)}</code></td>"
        f"<td>{entered} of {public}</td></tr>"
        for name, (area, entered, public) in sorted(
            modules(report).items(), key=lambda item: (item[1][0], item[0])
        )
    )
    head = "<tr><th>part</th><th>module</th><th>entered</th></tr>"
    parts = [f"<h2>Their public functions</h2><p>{escape(functions(report)[0])}</p>"]
    if told := acts(report):
        parts.append("<p>Act on CUDA when called by themselves (told, and not judged):</p>")
        parts.append(f"<pre>{escape(chr(10).join(told))}</pre>")
    return [*parts, f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"]


def _said_in_html(line: Line, devices: list[str]) -> str:
    everywhere = line.devices == ", ".join(devices)
    where = "" if everywhere else f"<small>{escape(line.devices)}</small> "
    place = f"<code>{escape(line.place)}</code> " if line.place else ""
    return f"{where}{place}{escape(line.sentence)}"


def _bold(verdict: str) -> str:
    return f"**{verdict}**" if verdict == FAIL else verdict


def _said(fact: Fact, devices: list[str]) -> Iterator[str]:
    for line in fact.lines:
        everywhere = line.devices == ", ".join(devices)
        where = "" if everywhere else f"[{line.devices}] "
        mark = "" if line.outcome in ("pass", FAIL) else f"{line.outcome}: "
        place = f"{line.place}: " if line.place else ""
        sentence = line.sentence.removeprefix(f"{line.outcome}: ")
        short = sentence if len(sentence) <= _LONGEST else f"{sentence[:_LONGEST]}…"
        yield f"{where}{mark}{place}{short}"


def _worst(outcomes: list[str]) -> str:
    return next((outcome for outcome in _SPEAKS if outcome in outcomes), "-")
