"""A file that is not Python as its rules see it: what it holds, and how they report."""

from __future__ import annotations

from dataclasses import dataclass, field

from conformance.scan.findings import Finding, Fix, Severity
from conformance.scan.judging.rule import Rule
from conformance.scan.knowing.errands import highest
from conformance.scan.reading.files.pieces import Asked, Command, Setting
from conformance.scan.reading.source import Source

_TEXT_LIMIT = 200


@dataclass
class Document:
    """One file in pieces; findings gather here."""

    source: Source
    kind: str
    settings: list[Setting] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    #: The file says of itself that it is for Linux or CUDA alone, or was written by a tool.
    declared: bool = False

    def report(
        self,
        rule: Rule,
        piece: Setting | Asked | Command,
        message: str,
        *,
        severity: Severity | None = None,
        fix: Fix | None = None,
    ) -> None:
        """Add a finding at a piece, as grave as the file's path lets it be."""
        cap = highest(self.source.path)
        if cap is None:
            return
        wanted = rule.severity if severity is None else severity
        if self.declared:
            wanted = Severity.NOTE
        line, column = self._place(piece.start)
        end_line, end_column = self._place(max(piece.end - 1, piece.start))
        keys = piece.keys if isinstance(piece, Setting) else ()
        text = " ".join(self.source.text[piece.start : piece.end].split())[:_TEXT_LIMIT]
        made = Finding(
            path=self.source.path,
            line=line,
            column=column,
            end_line=end_line,
            end_column=end_column + 1,
            code=rule.code,
            severity=min(wanted, cap),
            message=message,
            scope=".".join(key for key in keys[:-1] if not key.startswith("[")),
            text=f"{keys[-1]}: {text}" if keys and not keys[-1].startswith("[") else text,
            shape=text,
            fix=fix,
            last_line=end_line,
            first_line=line,
        )
        if not any(f.code == made.code and f.sort_key == made.sort_key for f in self.findings):
            self.findings.append(made)

    def _place(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of a character offset."""
        line = self.source.line_of(offset)
        return line, offset - self.source.starts[line - 1] + 1

    def beside(self, setting: Setting) -> list[Setting]:
        """The other settings of the same mapping."""
        owner = setting.owner
        return [other for other in self.settings if other.owner == owner and other is not setting]
