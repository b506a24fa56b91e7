"""Devices that are handed to functions of the project, and what those do with them."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Container, Iterator

from conformance.scan.knowing.foreign import Foreign
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.scopes import FunctionNode, Key
from conformance.scan.knowing.signatures import spelled
from conformance.scan.knowing.vocabulary import (
    ACCELERATORS,
    declared_backends,
    device_type,
    is_device_name,
    named_backends,
)
from conformance.scan.reading.nodes import parts_of


class Handed:
    """The calls of one file that give a device by place, or by a keyword that does not say so."""

    def __init__(self, point: Point, foreign: Foreign) -> None:
        self.point = point
        self._given = {name: dict(given) for name, given in foreign.parameters}
        #: Functions that are given a device outright, of which it is not known what they do with
        #: it, and by which place or name.
        self.passed: set[tuple[str, str]] = set()
        self._fields = dict(foreign.fields)
        #: Names, none of them a device's, under which objects are given an accelerator.
        self.fields: set[str] = set()

    def field(self, name: str | None, value: ast.expr) -> str | None:
        """Where an accelerator ends up that is kept under a name in some object."""
        if name is None or is_device_name(name) or declared_backends(name):
            return None
        if not isinstance(value, ast.Constant) or not self._may_be_device(value, ()):
            return None
        self.fields.add(name)
        return self._fields.get(name)

    def placed(
        self, node: ast.Call, name: str, held: Container[Key]
    ) -> Iterator[tuple[ast.expr, str]]:
        """The devices that a call gives and the function places, with where it does.

        ``held`` are the variables that hold a device.
        """
        given: list[tuple[str, ast.expr]] = [
            *((str(place), value) for place, value in enumerate(node.args)),
            *((k.arg, k.value) for k in node.keywords if k.arg and not is_device_name(k.arg)),
        ]
        text = ""
        for which, value in given:
            if id(value) in self.point.consumed or not self._may_be_device(value, held):
                continue
            text = text or self.callee(node.func)
            if not text or declared_backends(name):
                return
            if text not in self._given:
                self.passed.add((text, which))
                continue
            how = self._given[text].get(which)
            if how:
                yield value, how

    def _may_be_device(self, value: ast.expr, held: Container[Key]) -> bool:
        """Whether a value names an accelerator that is not known to be there, outright or by a
        variable whose name does not say so."""
        point = self.point
        if isinstance(value, ast.Name):
            key = point.resolver.key(value, point.scope)
            says = is_device_name(value.id) and not named_backends(value.id)
            return not says and key in held
        if isinstance(value, ast.Constant):
            device = device_type(value.value) if isinstance(value.value, str) else None
            return device in ACCELERATORS and not point.guarded(device or "")
        return isinstance(value, ast.IfExp | ast.JoinedStr | ast.Call) and any(
            leaf.device in ACCELERATORS and leaf.facts.guard(leaf.device or "") is None
            for leaf in point.leaves(value)
        )

    def callee(self, function: ast.expr) -> str:
        """A function that the project may hold, as the file spells it; after ``=`` one of its own
        (a method by its class's name). Empty for any other."""
        text = spelled(function)
        point = self.point
        if text.startswith(("self.", "cls.")) and text.count(".") == 1:
            owner = point.scope.enclosing("class")
            return f"={owner.name}.{text.partition('.')[2]}" if owner is not None else ""
        if isinstance(function, ast.Attribute):
            made = self._class_of(function.value)
            if made:
                return f"{made}.{function.attr}"
        if not text:
            return ""
        found = point.scope.find(text.partition(".")[0])
        kinds = {bound.kind for bound in found[1]} if found is not None else set()
        if kinds <= {"def"} and "." not in text and not hasattr(builtins, text):
            return f"={text}"  # one that was not parsed is not bound
        return text if kinds == {"import"} else ""

    def _class_of(self, value: ast.expr) -> str:
        """The class that an object is made of, outright or where its variable is set."""
        if isinstance(value, ast.Name | ast.Attribute):
            name = spelled(value)
            kind = "class" if name.startswith("self.") else "function"
            owner = self.point.scope.enclosing(kind) or self.point.resolver.scopes.module
            made = self.point.once(_only_values, owner.node).get(name)
            if made is None and kind == "function":
                module = self.point.resolver.scopes.module.node
                made = self.point.once(_only_values, module).get(name)
            if made is None:
                return ""
            value = made
        if not isinstance(value, ast.Call) or isinstance(value.func, ast.Call):
            return ""
        last = spelled(value.func).rpartition(".")[2]
        return self.callee(value.func) if last[:1].isupper() else ""


def _only_values(point: Point, area: ast.AST) -> dict[str, ast.expr]:
    """What the variables are set to that are set once; of a module, at its margin."""
    every: dict[str, list[ast.expr]] = {}
    for part in area.body if isinstance(area, ast.Module) else point.parts_of(area):
        if isinstance(part, ast.Assign):
            for name in {spelled(target) for target in part.targets}:
                every.setdefault(name, []).append(part.value)
    given: set[str] = set()
    if isinstance(area, FunctionNode):
        given = {part.arg for part in parts_of(area.args) if isinstance(part, ast.arg)}
    return {
        name: values[0] for name, values in every.items() if len(values) == 1 and name not in given
    }
