"""What the scanner says: findings, their severity, and the edits that mend them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Any


class Severity(enum.IntEnum):
    """How much a finding matters: a note informs, a warning degrades, an error fails."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def label(self) -> str:
        """Lower-case name as used on the command line and in reports."""
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Severity:
        """Severity from its label; raises ValueError for any other text."""
        try:
            return cls[text.upper()]
        except KeyError:
            raise ValueError(
                f"unknown severity {text!r}: expected error, warning or note"
            ) from None


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """Replace characters ``start`` to ``end`` (offsets into the decoded source) by ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Fix:
    """Edits that remove one finding; ``safe`` when they cannot change what CUDA users get.

    ``older`` holds what does the same where PyTorch has not what the edits call, newest first.
    """

    edits: tuple[Edit, ...]
    safe: bool = False
    older: tuple[tuple[Edit, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One place in one file. Lines and columns count from 1, ends are exclusive columns.

    ``scope`` is the dotted name of the enclosing function, ``text`` the flagged code without its
    formatting and ``shape`` the same with local names masked: together they are the fingerprint.
    ``cell`` is the notebook cell (from 1) and ``cell_line`` the line in it, else 0. From
    ``first_line`` to ``last_line`` reaches the statement (of a block: its head) that it lies in.
    """

    path: str
    line: int
    column: int
    end_line: int
    end_column: int
    code: str
    severity: Severity
    message: str
    scope: str = ""
    text: str = ""
    shape: str = ""
    fix: Fix | None = None
    cell: int = 0
    cell_line: int = 0
    last_line: int = 0
    first_line: int = 0
    source: tuple[str, ...] = field(default=(), compare=False)

    @property
    def sort_key(self) -> tuple[str, int, int, str]:
        """Order of reports: by file, then place, then rule."""
        return (self.path, self.line, self.column, self.code)

    def at(self, path: str) -> Finding:
        """The same finding in a file called ``path``."""
        return self if path == self.path else replace(self, path=path)

    def to_row(self) -> list[Any]:
        """Plain values for the cache, without the path, which is the cache's own business."""
        fix = None
        if self.fix is not None:
            forms = (self.fix.edits, *self.fix.older)
            fix = [self.fix.safe, *([[e.start, e.end, e.text] for e in form] for form in forms)]
        return [
            self.line,
            self.column,
            self.end_line,
            self.end_column,
            self.code,
            int(self.severity),
            self.message,
            self.scope,
            self.text,
            self.shape,
            fix,
            self.cell,
            self.cell_line,
            self.last_line,
            self.first_line,
            list(self.source),
        ]

    @classmethod
    def from_row(cls, path: str, row: list[Any]) -> Finding:
        """Inverse of :meth:`to_row`; raises TypeError, ValueError or IndexError on a bad row."""
        raw = row[10]
        fix = None
        if raw is not None:
            edits, *older = (
                tuple(Edit(int(s), int(e), str(t)) for s, e, t in form) for form in raw[1:]
            )
            fix = Fix(edits, bool(raw[0]), tuple(older))
        return cls(
            path=path,
            line=int(row[0]),
            column=int(row[1]),
            end_line=int(row[2]),
            end_column=int(row[3]),
            code=str(row[4]),
            severity=Severity(row[5]),
            message=str(row[6]),
            scope=str(row[7]),
            text=str(row[8]),
            shape=str(row[9]),
            fix=fix,
            cell=int(row[11]),
            cell_line=int(row[12]),
            last_line=int(row[13]),
            first_line=int(row[14]),
            source=tuple(str(line) for line in row[15]),
        )
