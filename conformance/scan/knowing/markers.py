"""What markers say about where code runs: decorators, names, set-up methods, ways to leave."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from conformance.scan.knowing.facts import NOTHING, UNKNOWN, Facts, known
from conformance.scan.knowing.packages import needed_package
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.scopes import FunctionNode
from conformance.scan.knowing.signatures import spelled
from conformance.scan.knowing.vocabulary import declared_backends, is_negated, named_backends
from conformance.scan.reading.nodes import parts_of

_LEAVING_CALLS = frozenset(
    {"sys.exit", "exit", "quit", "os._exit", "pytest.skip", "pytest.fail", "pytest.exit"}
)
_CUDA = r"\b(?:cuda|nvidia)\b"
_WANTS = r"(?:need|requir|only|must|without)"
#: ``"this needs CUDA"``, in either order.
_NEEDS = re.compile(rf"(?i){_WANTS}.{{0,40}}{_CUDA}|{_CUDA}.{{0,40}}{_WANTS}")
_SKIPS = {"skipif": True, "skipIf": True, "skipUnless": False, "run_if": False, "xfail": True}


def module_marker(point: Point, tree: ast.Module) -> Facts:
    """``pytestmark = pytest.mark.skipif(...)`` guards the whole module."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "pytestmark"
            for target in statement.targets
        ):
            value = statement.value
            marks = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
            return decorators_say(point, marks)
    return NOTHING


def decorators_say(point: Point, decorators: Iterable[ast.expr]) -> Facts:
    """What decorators and skip markers say about where their function runs."""
    facts = NOTHING
    for decorator in decorators:
        facts = facts.both(_decorator(point, decorator))
    return facts


#: What switches something of CUDA's on or off and needs none.
_SWITCHES = ("torch.cuda.amp.", "torch.amp.", "torch.cuda.nvtx.")


def _decorator(point: Point, decorator: ast.expr) -> Facts:
    conditions = point.conditions
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if (f"{point.dotted(called) or ''}.").startswith((*_SWITCHES, "torch.autocast.")):
        return NOTHING
    if isinstance(decorator, ast.Name | ast.Attribute):
        held = point.resolver.only_value(decorator, point.scope)
        if held is not None and isinstance(held[0], ast.Call):
            inner = _decorator(point, held[0])
            if inner is not NOTHING:
                return inner
    if isinstance(decorator, ast.Call):
        name = (point.dotted(decorator.func) or "").rpartition(".")[2]
        if name in _SKIPS and decorator.args:
            pair = conditions.of(decorator.args[0], point.scope)
            if pair is not UNKNOWN:
                skipped = _SKIPS[name]
                true, false = pair
                guards = (false if skipped else true).known
                return known("name", *guards) if guards else (false if skipped else true)
    words: set[str] = set()
    for node in parts_of(decorator):
        word = ""
        if isinstance(node, ast.Name):
            word = node.id
        elif isinstance(node, ast.Attribute):
            word = node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            word = node.value if len(node.value) < 24 else ""
        if word and _runs_with(word):
            words.update(named_backends(word))
    return known("name", *words, node=decorator) if words else NOTHING


def fixtures_say(point: Point, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Facts:
    """What a test begins with, or its fixtures, that skips it where a backend is missing."""
    facts = NOTHING
    if not point.in_tests or not node.name.startswith("test"):
        return facts
    facts = facts.both(_skips(point, [s for s in node.body[:3] if isinstance(s, ast.Expr)]))
    wanted = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    module = point.resolver.scopes.module.node
    for fixture in getattr(module, "body", ()) if wanted else ():
        if (
            isinstance(fixture, ast.FunctionDef)
            and fixture.name in wanted
            and any("fixture" in ast.dump(decorator) for decorator in fixture.decorator_list)
        ):
            facts = facts.both(_skips(point, fixture.body))
    return facts


def _skips(point: Point, body: list[ast.stmt]) -> Facts:
    """What is known behind statements that skip the test, or call what does by its name."""
    facts = NOTHING
    for statement in body:
        if isinstance(statement, ast.If) and any(
            isinstance(last, ast.Expr) and exits(point, last.value) for last in statement.body[-1:]
        ):
            facts = facts.both(point.conditions.of(statement.test, point.resolver.scopes.module)[1])
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            function = statement.value.func
            name = getattr(function, "id", getattr(function, "attr", ""))
            if ("require" in name or "skip" in name) and _runs_with(name):
                facts = facts.both(known("name", *named_backends(name), node=statement))
    return facts


def set_up(point: Point, node: ast.ClassDef) -> Facts:
    """Facts that a class establishes: in ``setUp`` by skipping the rest, in ``__init__`` by
    refusing to be made."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            facts = _refusals(point, method)
            if facts is not NOTHING:
                return facts
        if isinstance(method, ast.FunctionDef) and method.name in (
            "setUp",
            "setUpClass",
            "setup_method",
            "setup_class",
        ):
            for statement in method.body:
                if isinstance(statement, ast.If) and any(
                    isinstance(last, ast.Raise)
                    or (isinstance(last, ast.Expr) and exits(point, last.value))
                    for last in statement.body[-1:]
                ):
                    return point.conditions.of(statement.test, point.scope)[1]
    return NOTHING


def _refusals(point: Point, method: ast.FunctionDef) -> Facts:
    """What the assertions and refusals say that stand in a method's own block."""
    scope = point.resolver.scopes.of.get(id(method))
    facts = NOTHING
    for statement in method.body if scope is not None else ():
        assert scope is not None
        if isinstance(statement, ast.Assert):
            facts = facts.both(point.conditions.of(statement.test, scope)[0])
        elif isinstance(statement, ast.If) and refuses(statement.body):
            facts = facts.both(point.conditions.of(statement.test, scope)[1])
    return known("name", *facts.known, node=method) if facts.known else NOTHING


def refuses(body: list[ast.stmt]) -> bool:
    """Whether a block ends by raising, not by returning something else."""
    return bool(body) and isinstance(body[-1], ast.Raise)


def refused(point: Point, body: list[ast.stmt]) -> Facts:
    """What a function declares by refusing every other device in hand, wherever it does so."""
    facts = NOTHING
    for statement in body:
        if isinstance(statement, ast.If) and not statement.orelse and refuses(statement.body):
            held = point.conditions.of(statement.test, point.scope)[1].known
            backends = [name for name, guard in held.items() if guard.kind == "test"]
            facts = facts.both(known("name", *backends, node=statement))
    needing = point.once(_tried_for, point.resolver.scopes.module.node)
    if needing and any(_calls_one(statement, needing) for statement in body):
        facts = facts.both(known("name", "cuda", node=body[0]))
    return facts


def _tried_for(_: Point, tree: ast.AST) -> set[str]:
    """Names that a module has only where it could import a package for CUDA."""
    found: set[str] = set()
    for attempt in getattr(tree, "body", ()):
        if isinstance(attempt, ast.Try):
            imports = [s for s in attempt.body if isinstance(s, ast.Import | ast.ImportFrom)]
            tried = {name for s in imports if needed_package(s) for name in _names_of(s)}
            instead = [part for h in attempt.handlers for part in parts_of(h)] if tried else []
            found |= tried.difference(name for part in instead for name in _names_of(part))
    return found


def _names_of(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds to something."""
    match node:
        case ast.Import() | ast.ImportFrom():
            yield from ((a.asname or a.name).partition(".")[0] for a in node.names)
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            yield name
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            if not (isinstance(value, ast.Constant) and not value.value):
                yield name


def _calls_one(statement: ast.stmt, names: set[str]) -> bool:
    """Whether a statement calls one of some names whatever happens."""
    if not isinstance(statement, ast.Expr | ast.Assign | ast.Return) or statement.value is None:
        return False
    return any(
        isinstance(part, ast.Call) and spelled(part.func).partition(".")[0] in names
        for part in parts_of(statement.value)
    )


def wraps_for_cards(function: FunctionNode) -> Facts:
    """``model = DistributedDataParallel(model, device_ids=[rank])`` without a condition: the
    function runs in one of several processes, each with a card of CUDA's."""
    for statement in function.body:
        call = statement.value if isinstance(statement, ast.Assign) else None
        if (
            isinstance(call, ast.Call)
            and spelled(call.func).rpartition(".")[2] in ("DistributedDataParallel", "DDP")
            and any(k.arg == "device_ids" and isinstance(k.value, ast.List) for k in call.keywords)
        ):
            return known("name", "cuda", node=call)
    return NOTHING


def exits(point: Point, value: ast.expr) -> bool:
    """Whether a call ends the function or the test (``sys.exit()``, ``self.skipTest()``)."""
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Attribute) and value.func.attr == "skipTest":
        return True
    return isinstance(value.func, ast.Attribute | ast.Name) and (
        point.dotted(value.func) in _LEAVING_CALLS
    )


#: Methods that spread a model over several cards, and bring it back, and what is named for them.
_FOR_CARDS = re.compile(
    r"(?:de)?parallelize\Z|.*(?:multi_?gpus?(?:_|\Z)|MultiGPU|DistributedDataParallel)"
)


def declared(name: str) -> Facts:
    """What a name declares its code to be for (``_sync_cuda``, ``class MPSBackend``)."""
    if _FOR_CARDS.match(name):
        return known("name", "cuda")
    backends = () if is_negated(name) else declared_backends(name)
    return known("name", *backends) if backends else NOTHING


def _runs_with(word: str) -> bool:
    """Whether a decorator's word says "only with" (``require_cuda``, ``skip_if_no_gpu``)."""
    low = word.lower()
    return ("skip" not in low or "_lt_" in low) != is_negated(low.replace("skip", "", 1))


def refusing(point: Point, tree: ast.Module) -> set[str]:
    """Functions of a module that end the program, or raise, where there is no CUDA."""
    found: set[str] = set()
    text = point.source.text
    if "cuda.is_available" not in text and "cuda.device_count" not in text:
        return found
    for node in tree.body:
        if isinstance(node, FunctionNode) and any(
            leaves_without(point, s) or _asserts(point, s) for s in node.body
        ):
            found.add(node.name)
    return found


def is_script_for_cuda(point: Point) -> bool:
    """Whether the file, run as a program, calls a function that refuses to go on without CUDA."""
    tree = point.resolver.scopes.module.node
    return any(
        isinstance(inner, ast.Expr) and refuses_by_call(point, inner.value)
        for statement in (tree.body if isinstance(tree, ast.Module) else ())
        if isinstance(statement, ast.If) and _is_main(statement.test)
        for inner in statement.body
    )


def _is_main(test: ast.expr) -> bool:
    return any(isinstance(part, ast.Name) and part.id == "__name__" for part in parts_of(test))


def _asserts(point: Point, statement: ast.stmt) -> bool:
    """``assert torch.cuda.is_available()``."""
    if not isinstance(statement, ast.Assert):
        return False
    guard = point.conditions.of(statement.test, point.scope)[0].guard("cuda")
    return guard is not None and guard.kind == "probe"


def leaves_without(point: Point, statement: ast.stmt, *, telling: bool = False) -> bool:
    """``if torch.cuda.is_available(): ... else: sys.exit(1)``, also at the end of a chain; with
    ``telling`` also where the function returns once it has said that it needs CUDA."""
    while isinstance(statement, ast.If):
        true, false = point.conditions.of(statement.test, point.scope)
        for facts, other in ((true, statement.orelse), (false, statement.body)):
            guard = facts.guard("cuda")
            probed = guard is not None and guard.kind == "probe"
            if probed and (_leaves(point, other) or (telling and _tells(other))):
                return True
        if len(statement.orelse) != 1:
            return False
        statement = statement.orelse[0]
    return False


def _leaves(point: Point, block: list[ast.stmt]) -> bool:
    last = block[-1] if block else None
    if isinstance(last, ast.Expr):
        return exits(point, last.value)
    return isinstance(last, ast.Raise)


def _tells(block: list[ast.stmt]) -> bool:
    """``print("this needs CUDA"); return``."""
    return (
        bool(block)
        and isinstance(block[-1], ast.Return)
        and any(
            isinstance(part, ast.Constant)
            and isinstance(part.value, str)
            and _NEEDS.search(part.value) is not None
            for statement in block
            if isinstance(statement, ast.Expr)
            for part in parts_of(statement.value)
        )
    )


def refuses_by_call(point: Point, value: ast.expr) -> bool:
    """Whether a call is of a function that refuses to go on without CUDA."""
    return isinstance(value, ast.Call) and spelled(value.func) in point.guarding
