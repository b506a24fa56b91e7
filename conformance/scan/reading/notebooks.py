"""Notebooks as one Python source: code cells joined, each line traced back to the file."""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass, field, replace

from conformance.scan.findings import Finding
from conformance.scan.reading.source import split_lines

_MAGIC = re.compile(r"^\s*[%!?]|^\s*[\w.\[\]'\"]+\?+\s*$")
#: Commands that IPython takes without a sign as well, before anything that no Python could be.
_BARE = re.compile(r"^(?:cd|ls|cat|cp|mv|rm|mkdir|pip|conda|pwd)[ \t]+[\w~./$-]+[^=(\[]*$")
#: `files = !ls` and `value = %env NAME`: a list or a text that is not to be known.
_CAPTURED = re.compile(r"^(\s*[\w, .]+=\s*)[!%](?!=).*$")
#: So far ahead a line is looked for in any line that holds it.
_NEAR = 2000
_LINE_TIMED = re.compile(r"^(\s*)%time(?:it)?\b(?:\s+-\w+(?:\s+\d+)?)*\s+(?=\S)")


class NotebookError(Exception):
    """The file is not a notebook; ``line`` counts from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Notebook:
    """Joined source; for each of its lines the cell, the line in the cell and in the file."""

    text: str
    places: list[tuple[int, int, int]]
    errors: list[tuple[int, str]] = field(default_factory=list)

    def place(self, finding: Finding) -> Finding:
        """The finding with its lines in the file and its cell noted."""
        cell, cell_line, raw = self._place(finding.line)
        end_raw = max(self._place(finding.end_line)[2], raw)
        last = max(self._place(finding.last_line)[2], end_raw) if finding.last_line else end_raw
        first = min(self._place(finding.first_line)[2], raw) if finding.first_line else raw
        return replace(
            finding,
            line=raw,
            end_line=end_raw,
            last_line=last,
            first_line=first,
            cell=cell,
            cell_line=cell_line,
            fix=None,
        )

    def _place(self, line: int) -> tuple[int, int, int]:
        if not self.places:
            return 0, 0, 1
        return self.places[min(max(line, 1), len(self.places)) - 1]


def read_notebook(data: bytes) -> Notebook:
    """Code cells of a notebook; magics and cells that do not parse are blanked.

    Raises NotebookError when the bytes are not a notebook.
    """
    try:
        raw = data.decode("utf-8-sig")
        content = json.loads(raw)
    except UnicodeDecodeError:
        raise NotebookError("not valid utf-8 text") from None
    except json.JSONDecodeError as error:
        raise NotebookError(f"not a notebook: {error.msg}", error.lineno) from None
    except RecursionError:
        raise NotebookError("not a notebook: nested too deeply") from None
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise NotebookError("not a notebook: it has no list of cells")
    raw_lines = _Lines(raw)
    lines: list[str] = []
    places: list[tuple[int, int, int]] = []
    errors: list[tuple[int, str]] = []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        code = _code(cell.get("source", ""))
        first = len(lines) + 1
        for index, (line, python) in enumerate(code, 1):
            lines.append(python)
            places.append((number, index, raw_lines.find(line) + 1))
        problem = _problem("\n".join(lines[first - 1 :]))
        if problem is not None:
            errors.append((first + problem[0] - 1, problem[1]))
            lines[first - 1 :] = [""] * (len(lines) - first + 1)
    return Notebook("\n".join(lines) + "\n", places, errors)


def _code(source: object) -> list[tuple[str, str]]:
    """Lines of a cell, each with the Python in it (a cell in another language has none)."""
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    lines = split_lines(source) if isinstance(source, str) else []
    foreign = bool(lines) and lines[0].startswith("%%") and not lines[0].startswith("%%time")
    if foreign:
        return [(line, "") for line in lines]
    code: list[tuple[str, str]] = []
    going_on = False
    for line in lines:
        if going_on:
            code.append((line, ""))  # a command that the line before goes on with
            going_on = line.rstrip().endswith("\\")
            continue
        shown = _python(line)
        going_on = shown != line and line.rstrip().endswith("\\")
        code.append((line, shown))
    if any(shown != line for line, shown in code) and _problem("\n".join(lines)) is None:
        return [(line, line) for line in lines]  # a text of several lines has some that begin so
    return code


def _python(line: str) -> str:
    """A line of a cell as Python; what is for the shell or for IPython alone does nothing."""
    captured = _CAPTURED.match(line)
    if captured is not None:
        return captured[1] + "..."
    timed = _LINE_TIMED.match(line)
    if timed is not None:
        return timed[1] + line[timed.end() :]
    if _MAGIC.match(line) or _BARE.match(line):
        indent = line[: len(line) - len(line.lstrip())]
        return indent + "pass" if indent else ""
    return line


class _Lines:
    """The lines of the file itself, in which those of the cells are looked for in their order."""

    def __init__(self, raw: str) -> None:
        self._lines = split_lines(raw)
        self._whole: dict[str, list[int]] = {}
        self._at = 0

    def find(self, line: str) -> int:
        """Index of the line that holds a source line, from the one before onwards."""
        if line.strip():
            spelled = (json.dumps(line)[1:-1], json.dumps(line, ensure_ascii=False)[1:-1])
            self._at = self._find(spelled)
        return self._at

    def _find(self, spelled: tuple[str, str]) -> int:
        start, last = self._at, min(len(self._lines), self._at + _NEAR)
        for index in range(start, last):
            if any(text in self._lines[index] for text in spelled):
                return index
        if last == len(self._lines):
            return start
        # Behind long outputs: there it has to be the whole line.
        if not self._whole:
            for index, held in enumerate(self._lines):
                self._whole.setdefault(held.strip().rstrip(","), []).append(index)
        found = [
            index
            for text in spelled
            for ending in ('"', '\\n"')
            for index in self._whole.get(f'"{text}{ending}', ())
            if index >= last
        ]
        return min(found, default=start)


def _problem(code: str) -> tuple[int, str] | None:
    """Line and message of a cell's syntax error; top-level ``await`` is fine in a notebook."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<cell>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError) as error:
        return getattr(error, "lineno", 1) or 1, getattr(error, "msg", "") or str(error)
    return None
