"""Where devices end up: literals followed through variables to the places that use them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from conformance.scan.findings import Severity
from conformance.scan.knowing.circumstances import (
    is_mocked,
    is_of_another_library,
)
from conformance.scan.knowing.foreign import ALONE, Foreign
from conformance.scan.knowing.handed import Handed
from conformance.scan.knowing.leaves import Judging, Leaf
from conformance.scan.knowing.packages import TWO_DEVICES
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.scopes import FunctionNode, Key, Scope
from conformance.scan.knowing.shapes import stands_in, stored_name
from conformance.scan.knowing.takers import (
    CLAIMED,
    FALLBACK_READS,
    FIRST,
    OPTIONS,
    TYPED,
    describes,
)
from conformance.scan.knowing.vocabulary import (
    ACCELERATORS,
    is_device_name,
    named_backends,
)


@dataclass(slots=True)
class _Candidate:
    leaves: list[Leaf]
    scope: Scope
    statement: ast.stmt
    standing_in: bool

    @property
    def is_whole(self) -> bool:
        """Whether it chooses among CUDA, a Mac's GPU and the CPU."""
        return {"cuda", "mps", "cpu"} <= {leaf.device for leaf in self.leaves}


class Placements:
    """Collects device expressions during the walk; has them judged, the last when it is over."""

    def __init__(self, point: Point, judge: Judging, foreign: Foreign = ALONE) -> None:
        self.point = point
        self.judge = judge
        self.foreign = foreign
        self.handed = Handed(point, foreign)
        #: Constants of the module that hold an accelerator, and place nothing here.
        self.unplaced: set[str] = set()
        self.held: dict[Key, list[_Candidate]] = {}
        self.used: dict[Key, str] = {}
        self.compared_keys: set[Key] = set()
        self.limited: set[Key] = set()

    # What the walk shows

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        """A value stored in a variable, an attribute or an item."""
        if isinstance(target, ast.Tuple | ast.List):
            if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
                for part, item in zip(target.elts, value.elts, strict=True):
                    self.assign(part, item)
            return
        point = self.point
        key = point.resolver.key(target, point.scope)
        if key is not None:
            leaves = point.leaves(value)
            if any(leaf.device or leaf.key for leaf in leaves):
                self._consume(value, leaves)
                if (
                    isinstance(target, ast.Name)
                    and any(leaf.device in ACCELERATORS for leaf in leaves)
                    and point.alternatives.is_overwritten(point.statement, target.id)
                ):
                    return
                standing_in = stands_in(target, point.branches)
                self.held.setdefault(key, []).append(
                    _Candidate(leaves, point.scope, point.statement, standing_in)
                )
            return
        name = stored_name(target)
        if name is not None and is_device_name(name):
            self._place(value, f"`{name}`", severity=self._severity_in_tests())
        else:
            self._keep(name, value)

    def _keep(self, name: str | None, value: ast.expr) -> None:
        """A device kept in an object, from which another file may take it."""
        place = None if self.point.in_tests else self.handed.field(name, value)
        if place is not None:
            self._place(value, place, severity=Severity.WARNING)

    def parameters(self, arguments: ast.arguments) -> None:
        """Defaults of parameters that choose a device (a literal one is another rule's)."""
        point = self.point
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [*arguments.defaults, *arguments.kw_defaults]
        names = [*positional[len(positional) - len(arguments.defaults) :], *arguments.kwonlyargs]
        for argument, default in zip(names, defaults, strict=True):
            if default is None or not is_device_name(argument.arg):
                continue
            if any(leaf.device and leaf.chosen for leaf in point.leaves(default)):
                self._place(default, f"parameter `{argument.arg}`")

    def returned(self, value: ast.expr) -> None:
        """A value returned by a function whose name says that it is a device."""
        point = self.point
        function = point.scope.enclosing("function")
        if function is None or not isinstance(function.node, FunctionNode):
            return
        if point.alternatives.is_dead(point.statement):
            return  # it neither places anything nor speaks for what does
        if isinstance(value, ast.Tuple):
            self._returned_tuple(function.node, value)
            return
        if isinstance(value, ast.ListComp):
            value = value.elt  # one device a card
        elif isinstance(value, ast.List) and len(value.elts) == 1:
            value = value.elts[0]
        leaves = point.leaves(value)
        if any(leaf.device or leaf.key for leaf in leaves):
            says = is_device_name(function.name)
            self._held_by(function.node, "return", value, leaves, placed=says)

    def _returned_tuple(self, function: FunctionNode, value: ast.Tuple) -> None:
        """A device among other values: each place of the tuple is a variable of its own."""
        for index, item in enumerate(value.elts):
            leaves = self.point.leaves(item)
            if any(leaf.device or self._is_chosen(leaf) for leaf in leaves):
                self._held_by(function, f"return {index}", item, leaves, placed=False)

    def _held_by(
        self,
        function: FunctionNode,
        place: str,
        value: ast.expr,
        leaves: list[Leaf],
        *,
        placed: bool,
    ) -> None:
        """A value that a function returns: a device if its name says so, if it is made one here,
        or if a test for the accelerator chose it."""
        key = (id(function), place)
        self.held.setdefault(key, []).append(
            _Candidate(leaves, self.point.scope, self.point.statement, False)
        )
        wrapped = any(leaf.device and isinstance(leaf.node, ast.Call) for leaf in leaves)
        found = any(_is_found(leaf, place) or self._is_chosen(leaf) for leaf in leaves)
        if placed or wrapped or found:
            self.used[key] = f"the device that {function.name}() returns"
        if key in self.used:
            self._consume(value, leaves)

    def _is_chosen(self, leaf: Leaf) -> bool:
        """Whether a variable holds what a test for an accelerator chose."""
        held = self.held.get(leaf.key, ()) if leaf.key is not None else ()
        return any(_is_found(inner, "return") for item in held for inner in item.leaves)

    def call(self, node: ast.Call) -> None:
        """Arguments of a call that say where to put something."""
        point = self.point
        function = node.func
        dotted = point.dotted(function) or ""
        name = getattr(function, "attr", getattr(function, "id", "")) or dotted
        if name == "partial" and node.args:
            name = getattr(node.args[0], "attr", getattr(node.args[0], "id", name))
        if dotted in CLAIMED or describes(point, dotted, name):
            for argument in [*node.args, *(k.value for k in node.keywords)]:
                self._consume(argument, point.leaves(argument))
                point.settled.add(id(argument))
            return
        if name in FALLBACK_READS or name in OPTIONS:
            self._default(node, name)
        if name in FALLBACK_READS or point.decorating:
            return
        if (
            name == "cuda"
            and isinstance(function, ast.Attribute)
            and not dotted.startswith("torch")
        ):
            self._cuda_method(node, function)
            return
        if dotted.partition(".")[0] in TWO_DEVICES:
            self._limit(node)
        how = f"{name}()" if name else "a call"
        if node.args and (name in FIRST or "to_device" in name) and id(node) not in point.consumed:
            self._place(node.args[0], how, consume_call=dotted == "torch.device" and node)
            self._numbered(node.args[0], how)
        if dotted == "torch.load" and len(node.args) > 1:
            self._place(node.args[1], "map_location")
        for keyword in node.keywords:
            if keyword.arg is not None:
                self._keyword(keyword.arg, keyword.value, name, dotted)
                if name not in OPTIONS:
                    self._keep(keyword.arg, keyword.value)
        if dotted == "torch.set_default_tensor_type" and node.args:
            self._tensor_type(node.args[0], "set_default_tensor_type()")
        elif name == "type" and len(node.args) == 1 and isinstance(function, ast.Attribute):
            for value in self._types(node.args[0]):
                self._tensor_type(value, "type()")
        if name not in FIRST and name not in OPTIONS and not point.in_tests:
            # A test that names a device means that one.
            for value, place in self.handed.placed(node, name, self.held):
                self._place(value, place)

    def _numbered(self, value: ast.expr, how: str) -> None:
        """``to(device_ids[0])`` where CUDA is found: a number is a card of CUDA's."""
        point = self.point
        if isinstance(value, ast.Subscript) and point.probed_only("cuda") is not None:
            name = getattr(value.value, "attr", getattr(value.value, "id", ""))
            if name in ("device_ids", "gpu_ids", "gpus"):
                self.judge([Leaf(value, "cuda", point.facts)], how, point.scope)

    def _default(self, node: ast.Call, name: str) -> None:
        """A default of an option, a field or a setting that chooses a device (a literal one is
        another rule's)."""
        if name in FALLBACK_READS:
            values = node.args[2 if name == "getattr" else 1 :]
            how = "the default of a setting"
        else:
            wanted = ("default", "default_value", "default_factory")
            values = [k.value for k in node.keywords if k.arg in wanted]
            values += node.args[:1] if name in ("Option", "Argument", "Field") else []
            how = "the default of a field" if "ield" in name else "the default of an option"
        for value in values:
            inner = value.body if isinstance(value, ast.Lambda) else value
            leaves = self.point.leaves(inner)
            if any(leaf.device in ACCELERATORS and leaf.chosen for leaf in leaves):
                self._place(inner, how)

    def _limit(self, node: ast.Call) -> None:
        """An engine that has two devices only: what it is given may choose between the two."""
        for argument in [*node.args, *(k.value for k in node.keywords)]:
            leaves = self.point.leaves(argument)
            self.limited.update(leaf.key for leaf in leaves if leaf.key is not None)
            if any(leaf.chosen for leaf in leaves):
                self._consume(argument, leaves)

    def _severity_in_tests(self, dotted: str = "") -> Severity | None:
        """A test that hands a device's name to what it tests need not place anything there."""
        named = self.point.in_tests and not dotted.startswith("torch.")
        return Severity.NOTE if named else None

    def _keyword(self, keyword: str, value: ast.expr, name: str, dotted: str) -> None:
        if keyword.startswith(("supports", "skip")):
            self.point.settled.add(id(value))
        # Elsewhere the keyword describes; a choice between two devices still is one.
        describes = keyword == "device_type" and name not in TYPED
        if describes and not isinstance(value, ast.IfExp):
            return
        if is_device_name(keyword) or (
            keyword == "accelerator" and isinstance(value, ast.Constant)
        ):
            severity = self._severity_in_tests(dotted)
            self._place(value, f"{keyword}=", severity=severity)

    def _types(self, value: ast.expr) -> list[ast.expr]:
        """The value, or those of a choice that is kept in a variable and knows CUDA alone."""
        point = self.point
        held = point.resolver.only_value(value, point.scope)
        choice = held[0] if held is not None else value
        if not isinstance(choice, ast.IfExp):
            return [value]
        types = [choice.body, choice.orelse]
        names = [point.dotted(inner) or "" for inner in types]
        return types[:1] if all(name.startswith("torch.cuda.") for name in names) else []

    def _tensor_type(self, value: ast.expr, how: str) -> None:
        """``torch.set_default_tensor_type(torch.cuda.FloatTensor)``, or its name."""
        point = self.point
        text = point.resolver.text(value, point.scope) or point.dotted(value)
        if text is not None and text.startswith("torch.cuda."):
            leaf = Leaf(value, "cuda", point.facts)
            self.judge([leaf], how, point.scope)

    def _cuda_method(self, node: ast.Call, function: ast.Attribute) -> None:
        point = self.point
        if any(
            # The last was `async` once (see the parser).
            k.arg not in (None, "device", "non_blocking", "memory_format", "_sync")
            for k in node.keywords
        ):
            return  # another library's method of that name
        if not node.args and not node.keywords and isinstance(function.value, ast.Call):
            inner = point.dotted(function.value.func) or ""
            if inner.startswith("torch.cuda."):
                return
        if node.args and is_of_another_library(point, function.value):
            return
        if point.in_tests and is_mocked(point, "cuda"):
            return
        self.judge([Leaf(node, "cuda", point.facts)], ".cuda()", point.scope)

    def compared(self, node: ast.Compare) -> None:
        """``tensor.device.type == wanted``: a choice held in ``wanted`` is one of devices."""
        point = self.point
        sides = [node.left, *node.comparators]
        if any(
            isinstance(side, ast.Attribute) and side.attr in ("type", "device") for side in sides
        ):
            for side in sides:
                key = point.resolver.key(side, point.scope)
                if key is not None:
                    self.compared_keys.add(key)

    def dictionary(self, node: ast.Dict) -> None:
        """``{"device": "cuda"}``: settings on their way to a call."""
        for key, value in zip(node.keys, node.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else None
            if isinstance(name, str) and is_device_name(name) and name != "device_type":
                severity = self._severity_in_tests() or Severity.WARNING
                self._place(value, f'"{name}"', severity=severity)
            elif isinstance(name, str):
                self._keep(name, value)

    # Judging

    def _consume(self, value: ast.expr, leaves: list[Leaf]) -> None:
        consumed = self.point.consumed
        consumed.add(id(value))
        for leaf in leaves:
            consumed.add(id(leaf.node))
        stack = [value]
        while stack:
            node = stack.pop()
            consumed.add(id(node))
            if isinstance(node, ast.IfExp):
                stack += [node.body, node.orelse]
            elif isinstance(node, ast.BoolOp):
                stack += node.values
            elif isinstance(node, ast.Call) and any(leaf.node is node for leaf in leaves):
                stack += node.args

    def _place(
        self,
        value: ast.expr,
        how: str,
        *,
        consume_call: ast.Call | bool = False,
        severity: Severity | None = None,
    ) -> None:
        point = self.point
        if point.in_tests and how == "to()" and is_mocked(point, "to"):
            return
        if id(value) in point.consumed and not isinstance(value, ast.Name | ast.Attribute):
            return
        if isinstance(value, ast.Dict):
            for item in value.values:
                self._place(item, how, severity=severity)
            return
        leaves = point.leaves(value)
        self._consume(value, leaves)
        if isinstance(consume_call, ast.Call):
            point.consumed.add(id(consume_call))
        for leaf in leaves:
            if leaf.key is not None:
                if how == "device=" and leaf.key in self.limited:
                    continue
                self.used.setdefault(leaf.key, how)
        if any(leaf.device for leaf in leaves):
            self.judge(leaves, how, point.scope, severity=severity)

    def finish(self) -> None:
        """Judge the variables, now that every use of them has been seen."""
        for key in self.held:
            name = key[1].removeprefix("self.")
            # `CUDA_DEVICE` says what it is; what counts is where it is used.
            if key not in self.limited and is_device_name(name) and not named_backends(name):
                self.used.setdefault(key, f"`{key[1]}`")
        module = id(self.point.resolver.scopes.module.node)
        for name, place in self.foreign.placed:
            self.used.setdefault((module, name), place)
        pending = list(self.used)
        while pending:
            key = pending.pop()
            for candidate in self.held.get(key, ()):
                for leaf in candidate.leaves:
                    if leaf.key is not None and leaf.key not in self.used:
                        self.used[leaf.key] = self.used[key]
                        pending.append(leaf.key)
        for key, candidates in self.held.items():
            how = self.used.get(key)
            if how is None:
                wrapped = any(
                    isinstance(leaf.node, ast.Call) for item in candidates for leaf in item.leaves
                )
                choice = key in self.compared_keys and any(
                    leaf.chosen for item in candidates for leaf in item.leaves
                )
                if key[1].startswith("return"):
                    continue
                declared = named_backends(key[1])
                if key[0] == module and any(
                    leaf.device in ACCELERATORS for item in candidates for leaf in item.leaves
                ):
                    self.unplaced.add(key[1])
                if declared or (not wrapped and not choice) or self._is_idle(key, candidates):
                    continue
            if not key[1].startswith("return"):
                how = f"`{key[1]}`" + (f" (used in {how})" if how and how[0] != "`" else "")
            leaves = [leaf for item in candidates for leaf in item.leaves]
            if not any(leaf.device in ACCELERATORS for leaf in leaves if leaf.device):
                continue
            for item in candidates:
                # A binding that knows a Mac's GPU by itself says nothing of the others.
                beside = [c for c in candidates if c is item or not c.is_whole]
                leaves = [leaf for other in beside for leaf in other.leaves]
                self.point.statement = item.statement
                self.judge(
                    item.leaves,
                    how or "",
                    item.scope,
                    others=leaves,
                    standing_in=item.standing_in,
                    key=key,
                )

    def _is_idle(self, key: Key, candidates: list[_Candidate]) -> bool:
        """Whether a variable that no other file can name is never spoken of again."""
        scope = self.point.resolver.scopes.at(key[0])
        inner = all(item.statement.col_offset for item in candidates)
        if scope is None or not inner or not key[1].isidentifier():
            return False
        first, last = 1, len(self.point.source.lines)
        if isinstance(scope.node, FunctionNode):
            first, last = scope.node.lineno, scope.node.end_lineno or last
        spoken = re.compile(rf"\b{key[1]}\b")
        return (
            sum(len(spoken.findall(line)) for line in self.point.source.lines[first - 1 : last])
            == 1
        )


def _is_found(leaf: Leaf, place: str) -> bool:
    """Whether an accelerator is returned because a test found it, or in a tuple by any choice."""
    if leaf.device not in ACCELERATORS or leaf.device is None:
        return False
    guard = leaf.facts.guard(leaf.device)
    chosen = leaf.chosen and place != "return"
    return chosen or (guard is not None and guard.kind == "probe")
