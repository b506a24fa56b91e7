"""Marks of lines are what a tracer sees of the same module."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import line_coverage

SAMPLE = '''"""What it is for."""
from __future__ import annotations
import functools

def first(value):
    """Of one kind or another."""
    if value == 1:
        return "one"
    elif value == 2:
        answer = [
            number for number in range(3)
        ]
    else:
        answer = None
    try:
        answer[0]
    except TypeError:
        answer = "none"
    finally:
        value += 1
    match value:
        case 3:
            return answer
        case _:
            return None

class Holder:
    size: int = 3

    @functools.cache
    def held(self):
        while self.size > 2:
            break
        return self.size

first(2), first(5)
Holder().held()
'''


def test_marks_are_a_tracers_lines(tmp_path: Path) -> None:
    path = str(tmp_path / "sample.py")
    Path(path).write_text(SAMPLE, encoding="utf-8")
    seen = set[int]()

    def tracer(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != path:
            return None
        if event == "line":
            seen.add(frame.f_lineno)
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        exec(compile(SAMPLE, path, "exec"), {"__name__": "sample"})
    finally:
        sys.settrace(before)
    tree = ast.parse(SAMPLE, path)
    line_coverage.instrument(tree, path)
    exec(compile(tree, path, "exec"), {"__name__": "sample"})
    marked = {line for line, mark in enumerate(line_coverage.marked.pop(path)) if mark}
    # The docstring is no statement to coverage.py, nor are the other lines of one that has several.
    assert marked - {1} == {line for line in seen if line not in (1, 11)} | ({10} & seen)
    assert 8 not in marked, "what did not run"
