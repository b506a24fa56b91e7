"""What a rule may ask while the walk stands at a node, and how it reports."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from conformance.scan.findings import Edit, Finding, Fix, Severity
from conformance.scan.knowing.facts import NOTHING, Facts
from conformance.scan.knowing.scopes import FunctionNode, Scope
from conformance.scan.knowing.vocabulary import asks_other

if TYPE_CHECKING:
    from conformance.scan.judging.rule import Rule
    from conformance.scan.knowing.placements import Placements
    from conformance.scan.knowing.resolve import Leaf, Resolver
    from conformance.scan.reading.source import Source

_TEXT_LIMIT = 200


#: A string, kept as it is, or a name that no dot precedes.
_NAMES = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?<![\w.])[^\W\d]\w*""")


def _masked(match: re.Match[str]) -> str:
    return match[0] if match[1] or match[0] in ("torch", "self") else "_"


class Context:
    """State of the walk in one file: scope, facts and statement; findings gather here."""

    placements: Placements

    def __init__(self, source: Source, resolver: Resolver) -> None:
        self.source = source
        self.resolver = resolver
        self.scope: Scope = resolver.scopes.module
        self.facts: Facts = NOTHING
        self.statement: ast.stmt = ast.Pass()
        self.branches: list[ast.expr] = []
        self.decorating = False
        self.findings: list[Finding] = []
        self.consumed: set[int] = set()
        self.positive: set[int] = set()
        self.settled: set[int] = set()
        self.refusing: set[int] = set()
        self._reported: set[tuple[str, int, int]] = set()
        self._asks: dict[int, bool] = {}

    def close(self) -> None:
        """Part with what points back here: the file's tree is then freed without a collector."""
        del self.placements, self.resolver.conditions

    def dotted(self, node: ast.expr | None) -> str | None:
        """Dotted path that an expression names in the current scope."""
        return self.resolver.dotted(node, self.scope)

    @property
    def in_tests(self) -> bool:
        """Whether the file is a test by its name or folder."""
        parts = self.source.path.split("/")
        folders = ("tests", "test", "testing")
        return not set(folders).isdisjoint(parts) or parts[-1].startswith(("test_", "conftest"))

    def leaves(self, node: ast.expr) -> list[Leaf]:
        """Values that a device expression can take here."""
        return list(self.resolver.leaves(node, self.scope, self.facts))

    def guarded(self, *backends: str) -> bool:
        """Whether one of the backends is known to be in use here."""
        return any(self.facts.guard(backend) is not None for backend in backends)

    def probed_only(self, backend: str) -> ast.AST | None:
        """The availability test that is the only guard of a backend here, if that is so."""
        guard = self.facts.guard(backend)
        return guard.node if guard is not None and guard.kind == "probe" else None

    def asks_others(self, scope: Scope | None = None) -> bool:
        """Whether the enclosing function (or the module's own statements) speaks of another
        accelerator than CUDA, in a name, an attribute or a string."""
        scope = scope or self.scope
        owner = scope.enclosing("function") or scope
        known = self._asks.get(id(owner.node))
        if known is None:
            known = self._asks[id(owner.node)] = _mentions_other(owner.node)
        return known

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
        self.findings.append(
            Finding(
                path=self.source.path,
                line=line,
                column=self.source.column(line, start) + 1,
                end_line=end_line,
                end_column=self.source.column(end_line, end) + 1,
                code=rule.code,
                severity=rule.severity if severity is None else severity,
                message=message,
                scope=owner.qualname,
                text=text,
                shape=shape,
                fix=fix,
                last_line=max(end_line, getattr(self.statement, "end_lineno", None) or end_line)
                if _is_simple(self.statement)
                else end_line,
            )
        )

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

    def device_expression(self) -> str | None:
        """An expression for the device in hand: a parameter, an attribute of self, a tensor."""
        scope: Scope | None = self.scope.enclosing("function")
        while scope is not None and scope.kind == "function":
            node = scope.node
            if isinstance(node, FunctionNode):
                for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                    if argument.arg == "device":
                        return "device"
                for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                    if argument.annotation is not None and _is_tensor(argument.annotation):
                        return f"{argument.arg}.device"
            scope = scope.parent
        return None


def _is_simple(statement: ast.stmt) -> bool:
    return not hasattr(statement, "body")


def _is_tensor(annotation: ast.expr) -> bool:
    return (
        (isinstance(annotation, ast.Name) and annotation.id == "Tensor")
        or (isinstance(annotation, ast.Attribute) and annotation.attr == "Tensor")
        or (isinstance(annotation, ast.Constant) and annotation.value in ("torch.Tensor", "Tensor"))
    )


def _mentions_other(owner: ast.AST) -> bool:
    stack: list[ast.AST] = list(ast.iter_child_nodes(owner))
    in_module = isinstance(owner, ast.Module)
    while stack:
        node = stack.pop()
        if in_module and isinstance(node, FunctionNode | ast.ClassDef):
            continue
        if isinstance(node, ast.Name):
            word = node.id
        elif isinstance(node, ast.Attribute):
            word = node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # A sentence (a docstring, a message) mentions much that the code does not do.
            word = node.value if len(node.value) < 40 and " " not in node.value else ""
        elif isinstance(node, ast.alias):
            word = node.asname or node.name
        else:
            word = ""
        if word and asks_other(word):
            return True
        stack.extend(ast.iter_child_nodes(node))
    return False
