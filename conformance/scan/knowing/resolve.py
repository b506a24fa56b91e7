"""Expressions resolved to what they name: dotted paths, device literals and definitions."""

from __future__ import annotations

import ast

from conformance.scan.knowing.scopes import Bound, Key, Scope, Scopes
from conformance.scan.knowing.signatures import spelled
from conformance.scan.knowing.vocabulary import device_type

_DEPTH = 6


class Resolver:
    """Looks names up through the scopes of one module."""

    def __init__(self, scopes: Scopes) -> None:
        self.scopes = scopes
        self._dotted: dict[tuple[int, int], str | None] = {}

    def dotted(self, node: ast.expr | None, scope: Scope, depth: int = 0) -> str | None:
        """Dotted path that an expression names, imports and aliases undone, or None.

        A name that nothing binds stands for itself, so a fragment without its imports (a
        notebook cell, a star import) is still understood.
        """
        if isinstance(node, ast.Attribute | ast.Call):
            place = (id(node), id(scope))
            if place not in self._dotted:
                self._dotted[place] = self._compound(node, scope, depth)
            return self._dotted[place]
        if isinstance(node, ast.Name):
            found = scope.find(node.id)
            if found is None:
                return node.id
            owner, bounds = found
            for bound in bounds:
                if bound.kind == "import":
                    return bound.dotted
            bound = bounds[0]
            if (
                bound.kind == "value"
                and len(bounds) == 1
                and depth < _DEPTH
                and isinstance(bound.value, ast.Name | ast.Attribute | ast.Call)
            ):
                target = self.dotted(bound.value, owner, depth + 1)
                if target is not None and target.startswith("torch."):
                    return target
        return None

    def _compound(self, node: ast.Attribute | ast.Call, scope: Scope, depth: int) -> str | None:
        if isinstance(node, ast.Call):
            return self._module_call(node, scope, depth)
        base = self.dotted(node.value, scope, depth)
        return f"{base}.{node.attr}" if base is not None else None

    def _module_call(self, node: ast.Call, scope: Scope, depth: int) -> str | None:
        """``getattr(torch, "cuda")`` and ``import_module("torch.cuda")``."""
        function = self.dotted(node.func, scope, depth + 1)
        if function == "getattr" and len(node.args) >= 2:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                base = self.dotted(node.args[0], scope, depth + 1)
                return f"{base}.{name.value}" if base is not None else None
        if function in ("importlib.import_module", "__import__") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                return name.value
        return None

    def key(self, node: ast.expr, scope: Scope) -> Key | None:
        """The variable that a name or an attribute of self stands for."""
        if isinstance(node, ast.Name):
            found = scope.find(node.id)
            owner = found[0] if found is not None else scope
            return id(owner.node), node.id
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            owner_class = scope.enclosing("class")
            if owner_class is not None:
                return id(owner_class.node), "self." + node.attr
        if isinstance(node, ast.Attribute) and self._of_module(node):
            return id(self.scopes.module.node), f"{spelled(node.value)}.{node.attr}"
        return None

    def _of_module(self, node: ast.Attribute) -> list[Bound]:
        """What is known of another module's name (``env.HAS_XPU``)."""
        if not self.scopes.has_foreign:
            return []
        return self.scopes.module.names.get(spelled(node), [])

    def bounds(self, node: ast.expr, scope: Scope) -> tuple[list[Bound], Scope]:
        """Bindings of a name or an attribute of self, and the scope that holds them."""
        if isinstance(node, ast.Name):
            found = scope.find(node.id)
            if found is not None:
                return found[1], found[0]
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            owner = scope.enclosing("class")
            if owner is not None:
                held = owner.names.get("self." + node.attr) or owner.names.get(node.attr, [])
                return held, owner
        elif isinstance(node, ast.Attribute):
            return self._of_module(node), self.scopes.module
        return [], scope

    def only_value(self, node: ast.expr, scope: Scope) -> tuple[ast.expr, Scope] | None:
        """The single expression that a variable is ever bound to, with its scope."""
        bounds, owner = self.bounds(node, scope)
        if len(bounds) == 1 and bounds[0].kind == "value" and bounds[0].value is not None:
            return bounds[0].value, owner
        return None

    def definition(self, node: ast.expr, scope: Scope) -> ast.AST | None:
        """The function or class of this file that an expression calls."""
        bounds, _ = self.bounds(node, scope)
        for bound in bounds:
            if bound.kind == "def":
                return bound.node
        return None

    def text(self, node: ast.expr, scope: Scope) -> str | None:
        """The string that an expression is, where it can be seen."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.Name | ast.Attribute):
            value = self.only_value(node, scope)
            if value is not None and isinstance(value[0], ast.Constant):
                return self.text(value[0], value[1])
        return None

    def device_set(self, node: ast.expr, scope: Scope) -> tuple[str, ...] | None:
        """Device types that a constant or a collection of constants names, None if other."""
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            devices = [self.literal(item, scope) for item in node.elts]
            return tuple(device for device in devices if device is not None) or None
        if (
            isinstance(node, ast.Call)
            and len(node.args) == 1
            and self.dotted(node.func, scope) in ("set", "frozenset", "tuple", "list")
        ):
            return self.device_set(node.args[0], scope)
        if isinstance(node, ast.Name | ast.Attribute):
            value = self.only_value(node, scope)
            if value is not None and not isinstance(value[0], ast.Name | ast.Attribute | ast.Call):
                return self.device_set(value[0], value[1])
            return None
        device = self.literal(node, scope)
        return (device,) if device is not None else None

    def literal(self, node: ast.expr, scope: Scope) -> str | None:
        """Device type of an expression that writes a device out, None otherwise."""
        match node:
            case ast.Constant(value=str(text)):
                return device_type(text)
            case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
                return device_type(text) if ":" in text else None
            case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Add() | ast.Mod()):
                return device_type(text.partition("%")[0])
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
                return device_type(text.partition("{")[0])
            case ast.Call(args=[first, *_]) if self.wraps_device(node, scope):
                return self.literal(first, scope)
            case ast.Call(args=[], keywords=[ast.keyword(arg="type", value=first), *_]):
                return self.literal(first, scope) if self.wraps_device(node, scope) else None
            case _:
                return None

    def wraps_device(self, node: ast.Call, scope: Scope) -> bool:
        """Whether a call only puts a device in another form: ``torch.device("cuda")``."""
        return self.dotted(node.func, scope) in ("torch.device", "str")
