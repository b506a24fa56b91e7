"""What a rule may ask while the walk stands at a node, and how it reports."""

from __future__ import annotations

import ast
import re

from conformance.scan.findings import Edit, Finding, Fix, Severity
from conformance.scan.judging.rule import Rule
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.knowing.scopes import FunctionNode, Scope
from conformance.scan.knowing.vocabulary import only_gpu
from conformance.scan.reading.nodes import parts_of
from conformance.scan.reading.source import Source

_TEXT_LIMIT = 200
#: A string, kept as it is, or a name that no dot precedes.
_NAMES = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?<![\w.])[^\W\d]\w*""")


def _masked(match: re.Match[str]) -> str:
    return match[0] if match[1] or match[0] in ("torch", "self") else "_"


class Context(Point):
    """A point as the rules see it; findings gather here."""

    def __init__(self, source: Source, resolver: Resolver) -> None:
        super().__init__(source, resolver)
        self.findings: list[Finding] = []
        self._reported: set[tuple[str, int, int]] = set()

    def report(
        self,
        rule: Rule,
        node: ast.AST,
        message: str,
        *,
        severity: Severity | None = None,
        fix: Fix | None = None,
        scope: Scope | None = None,
    ) -> None:
        """Add a finding at a node; a second one of the same rule at the same place is dropped."""
        line = getattr(node, "lineno", 1)
        if line == 0:
            return  # written in another file, and a matter of that one
        start = getattr(node, "col_offset", 0)
        place = (rule.code, line, start)
        if place in self._reported:
            return
        self._reported.add(place)
        end_line = getattr(node, "end_lineno", None) or line
        end = getattr(node, "end_col_offset", None) or start + 1
        if isinstance(node, FunctionNode | ast.ClassDef):
            end_line, end = line, start + 1
        owner = scope or self.scope
        text, shape = self._fingerprint(node)
        first, last = _extent(self.statement)
        self.findings.append(
            Finding(
                path=self.source.path,
                line=line,
                column=self.source.column(line, start) + 1,
                end_line=end_line,
                end_column=self.source.column(end_line, end) + 1,
                code=rule.code,
                severity=self._milder(rule.severity if severity is None else severity),
                message=message,
                scope=owner.qualname,
                text=text,
                shape=shape,
                fix=fix,
                last_line=max(end_line, last),
                first_line=min(line, first or line),
            )
        )

    def _milder(self, severity: Severity) -> Severity:
        """An error that only those meet who ask for "the GPU", or who measure, is a warning."""
        if severity == Severity.ERROR and self.measures:
            return Severity.WARNING
        asked = any(
            only_gpu(getattr(part, "attr", getattr(part, "id", "")))
            or self.conditions.is_on(part, self.scope)
            for branch in self.branches
            for part in parts_of(branch)
            if isinstance(part, ast.Name | ast.Attribute)
        )
        return min(severity, Severity.WARNING) if asked else severity

    def _fingerprint(self, node: ast.AST) -> tuple[str, str]:
        """Normalised text of a node, and its shape with local names masked."""
        if isinstance(node, FunctionNode | ast.ClassDef):
            return node.name, node.name
        if not isinstance(node, ast.expr | ast.stmt):
            return "", ""
        segment = self.segment(node)
        # Unparsing undoes the formatting; it is not worth its time on what nobody wrote by hand.
        text = ast.unparse(node) if len(segment) < 2000 else " ".join(segment[:2000].split())
        text = text[:_TEXT_LIMIT]
        return text, _NAMES.sub(_masked, text)

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Character offsets of a node."""
        start = self.source.offset(node.lineno, node.col_offset)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return start, self.source.offset(node.end_lineno, node.end_col_offset)

    def segment(self, node: ast.expr | ast.stmt) -> str:
        """Source text of a node."""
        start, end = self.span(node)
        return self.source.text[start:end]

    def replace(self, node: ast.expr | ast.stmt, text: str) -> Edit:
        """The edit that puts a text in place of a node."""
        return Edit(*self.span(node), text)

    def torch_name(self) -> str | None:
        """Name under which the module calls torch, None when it is not imported whole."""
        for name, bounds in self.resolver.scopes.module.names.items():
            if any(b.kind == "import" and b.dotted == "torch" for b in bounds):
                return name
        return None

    def _is_moved(self, node: FunctionNode, name: str) -> bool:
        """Whether a function moves a tensor that it was given: it may come from the host."""
        moved = rf"\b{re.escape(name)}\b(?:\.\w+\(\))*\.(?:to|cuda)\(|^\s*{re.escape(name)}\s*[:,=]"
        text = self.segment(node).partition(":\n")[2]
        return re.search(moved, text, re.MULTILINE) is not None

    def device_expression(self) -> str | None:
        """An expression for the device in hand: a parameter, an attribute of self, a tensor."""
        scope: Scope | None = self.scope.enclosing("function")
        while scope is not None and scope.kind == "function":
            node = scope.node
            if isinstance(node, FunctionNode):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any(argument.arg == "device" for argument in arguments):
                    return "device" if _is_given(node) else None
                for argument in arguments:
                    annotation = argument.annotation
                    tensor = annotation is not None and _is_tensor(annotation)
                    if tensor and not self._is_moved(node, argument.arg):
                        return f"{argument.arg}.device"
            scope = scope.parent
        return None


def _is_given(node: FunctionNode) -> bool:
    """Whether a ``device`` parameter always holds a device that the caller wants: no number, and
    no default that stands for another one."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip([a.arg for a in positional[::-1]], arguments.defaults[::-1], strict=False))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            defaults[argument.arg] = default
    for argument in [*positional, *arguments.kwonlyargs]:
        annotation = argument.annotation if argument.arg == "device" else None
        if annotation is not None and ast.unparse(annotation) == "int":
            return False
    default = defaults.get("device")
    return not (isinstance(default, ast.Constant) and default.value in (None, "cpu"))


def _extent(statement: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, of one that holds others those of its head."""
    first = getattr(statement, "lineno", 0)
    last = getattr(statement, "end_lineno", None) or first
    body = getattr(statement, "body", None)
    if body:
        decorators = getattr(statement, "decorator_list", None)
        first = decorators[0].lineno if decorators else first
        last = max(first, body[0].lineno - 1)
    return first, last


def _is_tensor(annotation: ast.expr) -> bool:
    return (
        (isinstance(annotation, ast.Name) and annotation.id == "Tensor")
        or (isinstance(annotation, ast.Attribute) and annotation.attr == "Tensor")
        or (isinstance(annotation, ast.Constant) and annotation.value in ("torch.Tensor", "Tensor"))
    )
