"""Names and what they are bound to: imports, assignments, parameters and attributes of self."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from conformance.scan.knowing.vocabulary import NAMESPACES, is_device_name
from conformance.scan.reading.lines import HotLines

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
#: A variable: the identity of its scope's node and its name (``self.x`` belongs to the class).
Key = tuple[int, str]


@dataclass(slots=True)
class Bound:
    """One binding of a name: to a dotted import, an expression, a definition or a parameter."""

    kind: str
    dotted: str = ""
    value: ast.expr | None = None
    node: ast.AST | None = None


@dataclass(slots=True)
class Scope:
    """Names bound in one module, class or function."""

    node: ast.AST
    kind: str
    parent: Scope | None
    name: str = ""
    names: dict[str, list[Bound]] = field(default_factory=dict)

    def bind(self, name: str, bound: Bound) -> None:
        """Add a binding; earlier ones stay, since control flow is not followed here."""
        self.names.setdefault(name, []).append(bound)

    @property
    def qualname(self) -> str:
        """Dotted name of the scope inside its module, empty for the module."""
        parts: list[str] = []
        scope: Scope | None = self
        while scope is not None and scope.kind != "module":
            parts.append(scope.name)
            scope = scope.parent
        return ".".join(reversed(parts))

    def enclosing(self, kind: str) -> Scope | None:
        """The nearest scope of a kind, this one included."""
        scope: Scope | None = self
        while scope is not None and scope.kind != kind:
            scope = scope.parent
        return scope

    def find(self, name: str) -> tuple[Scope, list[Bound]] | None:
        """Scope and bindings that a name has when read here; classes hide from their methods."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names and (scope.kind != "class" or scope is self):
                return scope, scope.names[name]
            scope = scope.parent
        return None


class Scopes:
    """All scopes of a module, filled from the statements that the scan may care about."""

    def __init__(self, tree: ast.Module) -> None:
        self.module = Scope(tree, "module", None)
        self.of: dict[int, Scope] = {id(tree): self.module}
        #: The tests under which flags are set to True, by the value that they are set to.
        self.flag_tests: dict[int, ast.expr] = {}
        #: Whether names are bound to what they are in other files.
        self.has_foreign = False

    def at(self, identity: int) -> Scope | None:
        """The scope of a key's owner."""
        return self.of.get(identity)

    def collect(self, tree: ast.Module, is_hot: HotLines, held: set[str]) -> None:
        """Bind names from hot statements; ``held`` are those known to stand for a device.

        Afterwards ``spread`` holds the names that stand for a device and can be read anywhere
        in the file, ``local`` those that only their own function can read and those of tests,
        which matter only beside something else of interest.
        """
        self._held = held
        self.spread: set[str] = set()
        self.local: set[str] = set()
        self._hot = is_hot
        self._block(tree.body, self.module)

    def _block(self, body: Iterable[ast.stmt], scope: Scope) -> None:
        for statement in body:
            kind = type(statement)
            if kind in (ast.Import, ast.ImportFrom):
                self._import(statement, scope)
            elif self._hot.any(statement.lineno, statement.end_lineno or statement.lineno):
                self._statement(statement, scope)
            elif isinstance(statement, FunctionNode | ast.ClassDef):
                scope.bind(statement.name, Bound("def", node=statement))

    def _statement(self, statement: ast.stmt, scope: Scope) -> None:
        if isinstance(statement, FunctionNode):
            self._function(statement, scope)
        elif isinstance(statement, ast.ClassDef):
            scope.bind(statement.name, Bound("def", node=statement))
            inner = self.of.setdefault(
                id(statement), Scope(statement, "class", scope, statement.name)
            )
            inner.names.clear()
            self._block(statement.body, inner)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                self._assign(target, statement.value, scope)
        elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
            if statement.value is not None:
                self._assign(statement.target, statement.value, scope)
        else:
            if isinstance(statement, ast.For | ast.AsyncFor):
                self._assign(statement.target, None, scope)
            elif isinstance(statement, ast.With | ast.AsyncWith):
                for item in statement.items:
                    if item.optional_vars is not None:
                        self._assign(item.optional_vars, None, scope)
            elif isinstance(statement, ast.If):
                self._flags(statement)
            for part in blocks_of(statement):
                self._block(part, scope)

    def _flags(self, statement: ast.If) -> None:
        """Flags that are set under a test of interest: ``if x.is_cuda: wait = True``."""
        for inner in statement.body:
            if (
                isinstance(inner, ast.Assign)
                and isinstance(inner.value, ast.Constant)
                and inner.value.value is True
                and self._hot.any(statement.lineno, statement.test.end_lineno or statement.lineno)
            ):
                self.local.update(t.id for t in inner.targets if isinstance(t, ast.Name))
                self.flag_tests[id(inner.value)] = statement.test

    def _function(self, node: FunctionNode, scope: Scope) -> None:
        scope.bind(node.name, Bound("def", node=node))
        inner = self.of.setdefault(id(node), Scope(node, "function", scope, node.name))
        inner.names.clear()
        for argument in arguments_of(node.args):
            inner.bind(argument.arg, Bound("param", node=argument))
        self._block(node.body, inner)
        name = node.name.lower()
        if scope.kind != "function" and (
            any(word in name for word in ("cuda", "gpu", "accelerator", "mps", "available"))
            or self._is_test(node)
        ):
            self.local.add(node.name)

    def _is_test(self, node: FunctionNode) -> bool:
        """Whether a short function answers a question about the device."""
        return len(node.body) <= 3 and any(
            isinstance(statement, ast.Return)
            and isinstance(statement.value, ast.Call | ast.BoolOp | ast.Compare | ast.UnaryOp)
            and self._hot.any(statement.lineno, statement.end_lineno or statement.lineno)
            for statement in node.body
        )

    def _import(self, statement: ast.stmt, scope: Scope) -> None:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.asname is not None:
                    scope.bind(alias.asname, Bound("import", dotted=alias.name, node=statement))
                    if alias.name.startswith("torch.") and matters(alias.name):
                        self._note(alias.asname, scope)
                else:
                    top = alias.name.partition(".")[0]
                    scope.bind(top, Bound("import", dotted=top, node=statement))
        elif isinstance(statement, ast.ImportFrom):
            module = statement.module or ""
            for alias in statement.names:
                dotted = f"{module}.{alias.name}" if module else alias.name
                if statement.level and alias.name != "torch":
                    dotted = "." + dotted
                elif statement.level:
                    dotted = "torch"
                name = alias.asname or alias.name
                scope.bind(name, Bound("import", dotted=dotted, node=statement))
                if dotted.startswith("torch.") and matters(dotted):
                    self._note(name, scope)

    def _note(self, name: str, scope: Scope, *, attribute: bool = False) -> None:
        (self.local if scope.kind == "function" and not attribute else self.spread).add(name)

    def _assign(self, target: ast.expr, value: ast.expr | None, scope: Scope) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            pairs: Iterable[ast.expr | None] = [None] * len(target.elts)
            if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
                pairs = value.elts
            for part, item in zip(target.elts, pairs, strict=True):
                self._assign(part, item, scope)
            return
        if isinstance(target, ast.Starred):
            self._assign(target.value, None, scope)
            return
        name, attribute = "", False
        if isinstance(target, ast.Name):
            name = target.id
            scope.bind(name, Bound("value", value=value, node=target))
        elif (
            isinstance(target, ast.Attribute)
            and isinstance(target.value, ast.Name)
            and target.value.id in ("self", "cls")
        ):
            owner = scope.enclosing("class")
            if owner is not None:
                name, attribute = target.attr, True
                owner.bind("self." + name, Bound("value", value=value, node=target))
        kind = _stands_for_device(value, self._held) if name and value is not None else 0
        if kind == 2 and not is_device_name(name):
            # A name that says it holds a device is judged wherever it is used, or not at all.
            self._note(name, scope, attribute=attribute)
        elif kind:
            self.local.add(name)


def matters(dotted: str) -> bool:
    """Whether an imported name of torch is one that rules look at under any alias."""
    last = dotted.rpartition(".")[2]
    return (
        dotted.split(".")[1] in ("cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa", "amp")
        or last in ("autocast", "Generator", "load", "float64", "double", "complex128", "device")
        or last in ("init_process_group", "set_default_device", "set_default_tensor_type")
    )


def _stands_for_device(value: ast.expr, held: set[str]) -> int:
    """2 for what could be a device, a list of devices or a backend's module, 1 for a test.

    ``held`` are the names that stand for a device already.
    """
    match value:
        case ast.Constant():
            return 2 if isinstance(value.value, str) and len(value.value) < 24 else 0
        case ast.Name():
            return 2 if value.id in held else 0
        case ast.Attribute():
            return 2 if value.attr in NAMESPACES or value.attr in held or _in_backend(value) else 1
        case ast.Call():
            tail = value.func
            name = tail.attr if isinstance(tail, ast.Attribute) else getattr(tail, "id", "")
            low = name.lower()
            if low in _TEXT_CALLS or "device" in low:
                return 2
            return int(low == "bool" or any(w in low for w in ("cuda", "available", "gpu", "mps")))
        case ast.IfExp():
            return max(
                1, _stands_for_device(value.body, held), _stands_for_device(value.orelse, held)
            )
        case ast.BoolOp():
            return max(1, *(_stands_for_device(part, held) for part in value.values))
        case ast.Tuple() | ast.List() | ast.Set() | ast.Subscript() | ast.JoinedStr() | ast.BinOp():
            return 2
        case ast.Dict() | ast.ListComp() | ast.GeneratorExp() | ast.Lambda():
            return 0
        case _:
            return 1


_TEXT_CALLS = frozenset(
    {"str", "format", "get", "getenv", "getattr", "pop", "import_module", "set", "frozenset"}
)


def _in_backend(node: ast.Attribute) -> bool:
    """Whether an attribute is one of a backend's namespace (``torch.cuda.synchronize``)."""
    return isinstance(node.value, ast.Attribute) and node.value.attr in NAMESPACES


def blocks_of(statement: ast.AST) -> Iterator[list[ast.stmt]]:
    """The statement lists inside a compound statement."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if block:
            yield block
    for handler in getattr(statement, "handlers", ()):
        yield handler.body
    for case in getattr(statement, "cases", ()):
        yield case.body


def arguments_of(arguments: ast.arguments) -> list[ast.arg]:
    """Every parameter, starred ones included."""
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return every + [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
