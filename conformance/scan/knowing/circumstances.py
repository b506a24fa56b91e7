"""What around a call says that it places nothing, or nothing on CUDA alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from conformance.scan.knowing.point import Point
from conformance.scan.knowing.scopes import FunctionNode, Scope
from conformance.scan.knowing.vocabulary import ACCELERATORS
from conformance.scan.reading.nodes import parts_of
from conformance.scan.reading.parser import parsed


def forks_others(point: Point) -> bool:
    """Whether the random state of another accelerator is kept beside CUDA's."""
    return point.once(_forks_others, (point.scope.enclosing("function") or point.scope).node)


def _forks_others(point: Point, owner: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "fork_rng"
        and any(
            isinstance(part, ast.Constant) and part.value in ACCELERATORS - {"cuda"}
            for part in parts_of(node)
        )
        for node in point.parts_saying(owner, "fork_rng")
    )


_GROUP = re.compile(r"(?:^|_)(?:distributed|ddp|fsdp|dist|world_size|local_rank|multiprocessing)")
#: Functions named for a collective that they wrap, or for the several processes that they serve.
_COLLECTIVE = re.compile(
    r"_*(?:(?:dist_|distributed_)?(?:all_?gather|all_?reduce|broadcast)(?:_|$)"
    r"|(?:dist|distributed|multi_?gpu)_|(?:\w+_)?ddp(?:_|$))"
)
#: Classes named for them.
_SHARED = re.compile(r"_*(?:Distributed|DDP)[A-Z]")
#: Functions that collect from all processes, if they call a collective as well.
_COLLECTING = re.compile(r"gather|reduce|collect|broadcast")
_RANK = re.compile(r"(?:^|_)(?:rank|gpu|proc_id|device_id)(?:_id|$)")


def is_of_process_group(
    point: Point, given: ast.AST | None = None, scope: Scope | None = None
) -> bool:
    """Whether a line runs in one of several processes only, each with a card of its own: behind a
    test for that, in a function for them (``scope`` if the walk has left it), or ``given`` a rank
    where the group of processes is made."""
    if any(_asks_for_group(branch) for branch in point.branches):
        return True
    function = (scope or point.scope).enclosing("function")
    owner = (scope or point.scope).enclosing("class")
    if serves_group(point, function) or (owner is not None and _SHARED.match(owner.name)):
        return True
    started = point.once(_started, (function or point.resolver.scopes.module).node)
    if any(line < getattr(given or point.statement, "lineno", 0) for line in started):
        return True
    if given is None or "init_process_group" not in point.source.text:
        return False
    # What `x.cuda(rank)` is called of is no rank; walking it again for each call of a chain
    # would take minutes.
    handed = (
        [*given.args, *(keyword.value for keyword in given.keywords)]
        if isinstance(given, ast.Call)
        else [given]
    )
    if not any(_RANK.search(word.lower()) for part in handed for word in _words(part)):
        return False
    owner = point.scope.enclosing("function") or point.scope
    return point.once(holds_group, owner.node)


def serves_group(point: Point, function: Scope | None) -> bool:
    """Whether a function is named for several processes, or for what it collects from them."""
    if function is None:
        return False
    name = function.name.lower()
    return _COLLECTIVE.match(name) is not None or (
        _COLLECTING.search(name) is not None and point.once(_sends, function.node)
    )


def _sends(point: Point, owner: ast.AST) -> bool:
    """Whether a function calls a collective of ``torch.distributed``."""
    return any(
        isinstance(part, ast.Call)
        and (point.dotted(part.func) or "").rpartition(".")[0] in ("torch.distributed", "dist")
        and part.func.attr.startswith(_SENDING)  # type: ignore[attr-defined]
        for part in point.parts_saying(owner, *_SENDING)
    )


#: How the collectives begin that hand tensors about.
_SENDING = ("all_", "broadcast", "gather", "reduce", "scatter")


def makes_group(node: ast.AST) -> bool:
    """Whether it is the call that makes a group of processes."""
    return (
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "init_process_group"
    )


def _started(_: Point, owner: ast.AST) -> list[int]:
    """Where a function, or a program, makes a group of NCCL's in any case: nothing that follows
    is reached without CUDA."""
    body = list(getattr(owner, "body", ()))
    for statement in body:
        match statement:
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                body += statement.body
    return [
        statement.lineno
        for statement in body
        if isinstance(statement, ast.Expr)
        and makes_group(statement.value)
        and any(
            isinstance(part, ast.Constant) and part.value == "nccl"
            for part in parts_of(statement.value)
        )
    ]


def holds_group(point: Point, owner: ast.AST) -> bool:
    """Whether a function makes a group of processes."""
    return any(makes_group(node) for node in point.parts_saying(owner, "init_process_group"))


def may_not_be_group(point: Point) -> bool:
    """Whether the function has left before, for want of ranks: one process needs no group."""
    owner = point.scope.enclosing("function")
    left = point.once(_left_for_ranks, owner.node) if owner is not None else ()
    return any(line < point.statement.lineno for line in left)


def _left_for_ranks(point: Point, owner: ast.AST) -> list[int]:
    return [
        part.lineno
        for part in point.parts_of(owner)
        if isinstance(part, ast.If)
        and any(isinstance(inner, ast.Return) for inner in parts_of(part))
        and any(
            _GROUP.search(word.lower()) or _RANK.search(word.lower()) for word in _words(part.test)
        )
    ]


def is_called_for_group(point: Point) -> bool:
    """Whether the file calls the function that the line stands in, and only behind a test for
    several processes."""
    owner = point.scope.enclosing("function")
    held = point.once(_called_for_group, point.resolver.scopes.module.node)
    return owner is not None and getattr(owner.node, "name", "") in held


def _called_for_group(point: Point, _: ast.AST) -> set[str]:
    """The names that a file speaks of behind tests for several processes, and nowhere else."""
    # The whole text: a caller that does not speak of devices is left out of the tree.
    every = parts_of(parsed(point.source.text))
    tested = {
        id(part)
        for branch in every
        if isinstance(branch, ast.If) and _asks_for_group(branch.test)
        for statement in branch.body
        for part in parts_of(statement)
    }
    spoken = [part for part in every if isinstance(part, ast.Name)]
    return {part.id for part in spoken} - {part.id for part in spoken if id(part) not in tested}


def is_left_by_one(point: Point) -> bool:
    """Whether the function has left before where there is one process only: what follows is for
    several, each with a card of its own."""
    owner = point.scope.enclosing("function")
    left = point.once(_left_by_one, owner.node) if owner is not None else ()
    return any(line < point.statement.lineno for line in left)


def _left_by_one(_: Point, owner: ast.AST) -> list[int]:
    return [
        part.lineno
        for part in (owner.body if isinstance(owner, FunctionNode) else ())
        if isinstance(part, ast.If)
        and isinstance(part.body[-1], ast.Return)
        and any(_GROUP.search(word.lower()) for word in _words(part.test))
        and _says_one(part.test)
    ]


def _says_one(test: ast.expr) -> bool:
    """``world_size == 1``, ``not is_dist_initialized()``."""
    match test:
        case ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Compare(ops=[ast.Eq() | ast.LtE() | ast.Lt()], comparators=[ast.Constant()]):
            return True
        case _:
            return False


def _asks_for_group(test: ast.expr) -> bool:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = test.operand  # the other branch of `if not distributed:`
        negated = isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.Not)
        return negated and _asks_for_group(inner.operand)  # type: ignore[attr-defined]
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(map(_asks_for_group, test.values))
    if _says_one(test) or _names_first(test):
        return False
    return _counts_several(test) or any(_GROUP.search(word.lower()) for word in _words(test))


def _names_first(test: ast.expr) -> bool:
    """``local_rank in (-1, 0)``, ``world_size > 0``: what one process alone is as well."""
    match test:
        case ast.Compare(ops=[ast.In()], comparators=[ast.Tuple() | ast.List() | ast.Set()]):
            return True
        case ast.Compare(left=left, ops=[ast.Gt()], comparators=[ast.Constant(value=0)]):
            return any("size" in word.lower() for word in _words(left))
        case ast.Compare(ops=[ast.Eq()], comparators=[ast.UnaryOp(op=ast.USub())]):
            return True
        case _:
            return False


#: Counts of cards or processes.
_COUNT = re.compile(r"(?:^|_)(?:n|num|number_of|count)_?(?:gpu|device|card|proc|process|rank|node)")


def _counts_several(test: ast.expr) -> bool:
    """``num_devices > 1``."""
    match test:
        case (
            ast.Compare(left=left, ops=[ast.Gt()], comparators=[ast.Constant(value=1)])
            | ast.Compare(left=left, ops=[ast.GtE()], comparators=[ast.Constant(value=2)])
        ):
            return any(_COUNT.search(word.lower()) for word in _words(left))
        case ast.BoolOp(op=ast.And(), values=values):
            return any(map(_counts_several, values))
        case _:
            return False


def _words(node: ast.AST) -> Iterator[str]:
    for part in parts_of(node):
        match part:
            case ast.Name(id=word) | ast.Attribute(attr=word):
                yield word
            case ast.Constant(value=str(word)) if word.isidentifier():
                yield word


def is_mocked(point: Point, method: str) -> bool:
    """Whether a test replaces the method that moves tensors or modules: nothing is moved."""
    owner = point.scope.enclosing("function")
    return owner is not None and method in point.once(_mocked, owner.node)


_REPLACING = ("patch", "setattr", "object")


def _mocked(point: Point, owner: ast.AST) -> set[str]:
    """The last words of what a function of a test replaces."""
    return {
        argument.value.rpartition(".")[2]
        for part in point.parts_saying(owner, *_REPLACING)
        if isinstance(part, ast.Call)
        and getattr(part.func, "attr", getattr(part.func, "id", "")) in _REPLACING
        for argument in part.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def is_of_another_library(point: Point, held: ast.expr) -> bool:
    """Whether a test says that a value is of another library's class, with methods of its own."""
    wanted = ast.dump(held)
    for branch in point.branches:
        match branch:
            case ast.Call(func=ast.Name(id="isinstance"), args=[first, kind]):
                if ast.dump(first) == wanted:
                    name = point.dotted(kind) or ""
                    return "." in name and not name.startswith((".", "torch."))
    return False
