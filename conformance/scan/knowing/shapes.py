"""Shapes of code that the walk and the placements recognise."""

from __future__ import annotations

import ast

from conformance.scan.knowing.facts import ANY, Facts
from conformance.scan.knowing.leaves import Leaf
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.scopes import Key, Scope
from conformance.scan.knowing.vocabulary import ACCELERATORS, DEVICE_WORDS, device_type
from conformance.scan.reading.nodes import parts_of


def names_no_device(leaf: Leaf) -> bool:
    """``"device" if newer else "cuda"``: a part of a name, chosen beside one that is no device."""
    node = leaf.node
    return (
        leaf.chosen
        and isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.isalpha()
        and node.value not in DEVICE_WORDS
        and not node.value.startswith(("balanced", "sequential"))
    )


_COLLECTIVES = frozenset(
    {
        "all_reduce",
        "all_gather",
        "all_gather_into_tensor",
        "all_to_all",
        "all_to_all_single",
        "broadcast",
        "gather",
        "reduce",
        "reduce_scatter",
        "reduce_scatter_tensor",
        "scatter",
        "send",
        "recv",
        "isend",
        "irecv",
    }
)


def is_for_collective(point: Point, key: Key | None, scope: Scope) -> bool:
    """Whether a device is where a tensor is made for a collective of ``torch.distributed``, in the
    same function, and is used for nothing else."""
    owner = scope.enclosing("function")
    if owner is None:
        return False
    sent = point.once(_sent, owner.node)
    if not sent:
        return False
    if key is None:
        statement = point.statement
        users = [statement] if isinstance(statement, ast.Assign) else []
    else:
        spoken = point.once(_assigned, owner.node).get(key[1], [])
        users = [statement for statement in spoken if statement is not point.statement]
    return bool(users) and all(
        any(isinstance(t, ast.Name) and t.id in sent for t in statement.targets)
        for statement in users
    )


def is_surely_sent(point: Point) -> bool:
    """Whether the statement makes a tensor that its function gives to a collective in any case, so
    that it needs a process group."""
    owner = point.scope.enclosing("function")
    if owner is None or not isinstance(point.statement, ast.Assign):
        return False
    sent = point.once(_surely_sent, owner.node)
    return any(isinstance(t, ast.Name) and t.id in sent for t in point.statement.targets)


def _surely_sent(point: Point, owner: ast.AST) -> set[str]:
    """Of the variables that a function gives to collectives, those given without a condition."""
    body = getattr(owner, "body", [])
    plain = [s for s in body if isinstance(s, ast.Expr | ast.Assign)]
    return {name for statement in plain for name in _sent(point, statement)}


def _sent(point: Point, owner: ast.AST) -> set[str]:
    """The variables that a function gives to collectives of ``torch.distributed``."""
    scope = point.resolver.scopes.at(id(owner)) or point.scope
    return {
        inner.id
        for part in point.parts_saying(owner, *_COLLECTIVES)
        if isinstance(part, ast.Call)
        and getattr(part.func, "attr", "") in _COLLECTIVES
        and (point.resolver.dotted(part.func, scope) or "").startswith("torch.distributed.")
        for argument in part.args
        for inner in parts_of(argument)
        if isinstance(inner, ast.Name)
    }


def _assigned(point: Point, owner: ast.AST) -> dict[str, list[ast.Assign]]:
    """By variable, the assignments of a function whose values speak of it."""
    found: dict[str, list[ast.Assign]] = {}
    for statement in point.parts_of(owner):
        if isinstance(statement, ast.Assign):
            names = {
                part.id
                for part in parts_of(statement.value)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)
            }
            for name in names:
                found.setdefault(name, []).append(statement)
    return found


def only_not_cpu(facts: Facts) -> bool:
    """Whether all that is known is that the device is not the CPU."""
    return (
        "cpu" in facts.excluded and ANY not in facts.known and not (set(facts.known) & ACCELERATORS)
    )


def stored_name(target: ast.expr) -> str | None:
    """Name of the attribute or the item that an assignment stores in."""
    match target:
        case ast.Attribute(attr=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case _:
            return None


def stands_in(target: ast.expr, branches: list[ast.expr]) -> bool:
    """Whether the assignment is the body of ``if target is None`` or ``if not target``."""
    if not branches:
        return False
    wanted = ast.dump(target).replace("Store()", "Load()")
    match branches[-1]:
        case ast.Compare(left=left, ops=[ast.Is() | ast.Eq()], comparators=[ast.Constant()]):
            return ast.dump(left) == wanted
        case ast.UnaryOp(op=ast.Not(), operand=left):
            return ast.dump(left) == wanted
        case _:
            return False


def passes_through(node: ast.If) -> bool:
    """``if device not in (...): return device``: what is not named is left as it is. So it is by
    ``if small or device not in (...): return False``, which keeps others off a fast path."""
    match node.body:
        case [ast.Return(value=ast.Constant(value=False))]:
            return isinstance(node.test, ast.BoolOp)
        case [ast.Return(value=ast.Name(id=name))]:
            return any(
                isinstance(part, ast.Name) and part.id == name for part in parts_of(node.test)
            )
        case _:
            return False


def pattern_devices(pattern: ast.pattern) -> tuple[str, ...]:
    """Devices that a ``case`` names."""
    match pattern:
        case ast.MatchValue(value=ast.Constant(value=str(text))):
            device = device_type(text)
            return (device,) if device is not None else ()
        case ast.MatchOr(patterns=patterns):
            return tuple(device for part in patterns for device in pattern_devices(part))
        case ast.MatchAs(pattern=inner) if inner is not None:
            return pattern_devices(inner)
        case _:
            return ()


def pattern_truth(pattern: ast.pattern) -> bool | None:
    """Whether a ``case`` is for True or for False, None for any other."""
    if isinstance(pattern, ast.MatchSingleton) and isinstance(pattern.value, bool):
        return pattern.value
    return None
