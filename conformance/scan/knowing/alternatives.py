"""What stands beside a choice of CUDA: the branches that serve other accelerators in its stead.

What is said once about a device does not speak for a file or a function. A test of another
accelerator counts where it decides between the code in question and something else: in the
expression itself, in the chain of branches around it, or in a branch next to it that does the
same. So a line that was mended elsewhere, and names ``torch.accelerator`` since, hides nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

from conformance.scan.knowing.scopes import FunctionNode, blocks_of
from conformance.scan.knowing.vocabulary import asks_mac
from conformance.scan.reading.nodes import parts_of

#: Whether a word speaks of accelerators that would serve as well.
Asks = Callable[[str], bool]
#: Whether a statement does the same as the one in question.
Does = Callable[[ast.stmt], bool]
_Place = tuple[ast.AST, list[ast.stmt], int]


def mentions(node: ast.AST, asks: Asks) -> bool:
    """Whether a name, an attribute or a short text in a piece of code speaks of an accelerator."""
    for part in parts_of(node):
        match part:
            case ast.Name(id=word) | ast.Attribute(attr=word):
                pass
            case ast.Constant(value=str(word)) if len(word) < 40 and " " not in word:
                pass
            case _:
                continue
        if asks(word):
            return True
    return False


class Alternatives:
    """The branches of one file, asked for those that serve other accelerators."""

    def __init__(self, tree: ast.AST) -> None:
        self._tree = tree
        self._places: dict[int, _Place] | None = None
        self._stored: dict[int, ast.stmt] = {}
        self._asked: dict[tuple[int, Asks], list[ast.stmt]] = {}
        self._names: dict[int, frozenset[str]] = {}  # by statement, the variables it speaks of

    def around(self, node: ast.AST, statement: ast.stmt, asks: Asks = asks_mac) -> bool:
        """Whether a condition inside the statement that decides about a node asks for others."""
        path = _path(statement, node)
        for parent, child in pairwise(path):
            match parent:
                case ast.IfExp(test=test) if child is not test:
                    if mentions(test, asks):
                        return True
                case ast.BoolOp(values=values):
                    if any(value is not child and mentions(value, asks) for value in values):
                        return True
                case ast.comprehension() | ast.ListComp() | ast.GeneratorExp():
                    if mentions(parent, asks):
                        return True
        return False

    def beside(self, statement: ast.stmt, does: Does, asks: Asks = asks_mac) -> bool:
        """Whether another branch of the chain around a statement, or a branch beside it, asks for
        others and does the same (in the same chain it may do anything)."""
        for parent, block, child in self._climb(statement):
            if isinstance(parent, ast.If) and _chain_asks(parent, child, asks):
                return True
            # What stands behind a `return` in its own block is never reached.
            ends = isinstance(child, ast.Return) and child is statement
            for other in self._asking(block, asks):
                if ends and other.lineno > child.lineno:
                    break
                if other is not child and _branch_asks(other, does, asks):
                    return True
            if isinstance(parent, ast.Try) and any(
                _branch_asks(other, does, asks)
                for part in blocks_of(parent)
                if part is not block
                for other in self._asking(part, asks)
            ):
                return True
        return False

    def _asking(self, block: list[ast.stmt], asks: Asks) -> list[ast.stmt]:
        """The branches of a block in which a test asks for others, found once."""
        held = self._asked.get((id(block), asks))
        if held is None:
            held = [other for other in block if _branch_asks(other, lambda _: True, asks)]
            self._asked[id(block), asks] = held
        return held

    def bound(self, target: ast.AST | None, asks: Asks = asks_mac) -> bool:
        """Whether an assignment to a target stands under a test that asks for others."""
        self._fill()
        statement = self._stored.get(id(target))
        return statement is not None and any(
            isinstance(parent, ast.If) and mentions(parent.test, asks)
            for parent, _, _ in self._climb(statement)
        )

    def is_dead(self, statement: ast.stmt) -> bool:
        """Whether a statement stands behind a ``return`` of its own block: it never runs."""
        held = self._fill().get(id(statement))
        return held is not None and any(
            isinstance(other, ast.Return | ast.Raise) for other in islice(held[1], held[2])
        )

    def is_overwritten(self, statement: ast.stmt, name: str) -> bool:
        """Whether what a statement stores in a variable is replaced before anything reads it."""
        held = self._fill().get(id(statement))
        if held is None:
            return False
        _, block, at = held
        for other in islice(block, at + 1, None):
            names = self._names.get(id(other))
            if names is None:
                every = (part.id for part in parts_of(other) if isinstance(part, ast.Name))
                names = self._names[id(other)] = frozenset(every)
            if name in names:
                return replaced_at_once([other], name)
        return False

    def _climb(self, statement: ast.stmt) -> Iterator[tuple[ast.AST, list[ast.stmt], ast.stmt]]:
        """What holds a statement, the block it stands in and itself; up to its function."""
        places = self._fill()
        child: ast.AST = statement
        while id(child) in places:
            assert isinstance(child, ast.stmt)
            parent, block, _ = places[id(child)]
            yield parent, block, child
            if isinstance(parent, FunctionNode | ast.ClassDef):
                return
            child = parent

    def _fill(self) -> dict[int, _Place]:
        if self._places is None:
            self._places = {}
            waiting: list[ast.AST] = [self._tree]
            while waiting:
                parent = waiting.pop()
                for block in blocks_of(parent):
                    for at, child in enumerate(block):
                        self._places[id(child)] = parent, block, at
                        waiting.append(child)
                        for target in _targets(child):
                            self._stored[id(target)] = child
        return self._places


def replaced_at_once(block: list[ast.stmt], name: str) -> bool:
    """Whether the first statement of a block that speaks of a variable gives it a new value."""
    for statement in block:
        spoken = any(isinstance(p, ast.Name) and p.id == name for p in parts_of(statement))
        if not spoken:
            continue
        match statement:
            case ast.Assign(targets=[ast.Name(id=stored)], value=value) if stored == name:
                return not any(isinstance(p, ast.Name) and p.id == name for p in parts_of(value))
            case _:
                return False
    return False


def _targets(statement: ast.stmt) -> Iterator[ast.AST]:
    match statement:
        case ast.Assign(targets=targets):
            for target in targets:
                yield from parts_of(target)
        case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
            yield target


def _path(top: ast.AST, node: ast.AST) -> list[ast.AST]:
    """The nodes from a statement down to one inside its expressions; empty if it is not there."""
    if top is node:
        return [top]
    for child in ast.iter_child_nodes(top):
        if not isinstance(child, ast.stmt):
            found = _path(child, node)
            if found:
                return [top, *found]
    return []


def _chain_asks(node: ast.If, child: ast.stmt, asks: Asks) -> bool:
    """Whether a test of an ``if`` chain asks for others, in a branch that ``child`` is not in."""
    while True:
        if mentions(node.test, asks) and not _only_serves(node):
            return True
        if len(node.orelse) != 1 or not isinstance(node.orelse[0], ast.If):
            return False
        node = node.orelse[0]
        if node is child:
            return False  # its own tests are looked at on the way up


def _branch_asks(node: ast.stmt, does: Does, asks: Asks) -> bool:
    """Whether a statement beside the one in question is a branch for others that does the same."""
    if not isinstance(node, ast.If) or _only_serves(node):
        return False
    if mentions(node.test, asks) and any(map(does, _inner(node.body))):
        return True
    return any(_branch_asks(other, does, asks) for other in [*node.body, *node.orelse])


def _inner(block: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in block:
        yield statement
        if not isinstance(statement, FunctionNode | ast.ClassDef):
            for part in blocks_of(statement):
                yield from _inner(part)


def _only_serves(node: ast.If) -> bool:
    """``if torch.accelerator.is_available(): torch.accelerator.synchronize()``, as fixes write it:
    that serves every accelerator with just this, and decides nothing for the code around it."""

    def neutral(call: ast.expr) -> bool:
        return (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Attribute)
            and call.func.value.attr == "accelerator"
        )

    return neutral(node.test) and all(
        isinstance(part, ast.Expr) and neutral(part.value) for part in node.body
    )


def stores(name: str) -> Does:
    """Whether a statement assigns a variable (``self.x`` for an attribute of self)."""

    def does(statement: ast.stmt) -> bool:
        return any(_name(target) == name for target in _targets(statement))

    return does


def _name(target: ast.AST) -> str:
    if isinstance(target, ast.Attribute):
        return f"self.{target.attr}"
    return getattr(target, "id", "")


def moves_like(original: ast.stmt) -> Does:
    """Whether a statement moves the same thing to a device, or stores in the same place, or
    returns as the original does."""
    returns = isinstance(original, ast.Return)
    moved = _moved(original)

    def does(statement: ast.stmt) -> bool:
        if hasattr(statement, "body"):
            return False
        if returns and isinstance(statement, ast.Return):
            return True
        return not moved.isdisjoint(_moved(statement))

    return does


def _moved(statement: ast.stmt) -> set[str]:
    """What a simple statement stores in, and what it calls a method of that moves to a device."""
    if hasattr(statement, "body"):
        return set()
    found = {ast.dump(part).replace("Store()", "Load()") for part in _targets(statement)}
    for part in parts_of(statement):
        if (
            isinstance(part, ast.Call)
            and isinstance(part.func, ast.Attribute)
            and part.func.attr in ("to", "cuda", "to_empty", "xpu", "npu", "set_default_device")
        ):
            found.add(ast.dump(part.func.value))
    return found


def calls(names: frozenset[str]) -> Does:
    """Whether a simple statement calls a function with one of these names."""

    def does(statement: ast.stmt) -> bool:
        return not hasattr(statement, "body") and any(
            isinstance(part, ast.Call) and getattr(part.func, "attr", "") in names
            for part in parts_of(statement)
        )

    return does
