"""Conditions read as facts: what a test teaches about the backend when true and when false."""

from __future__ import annotations

import ast
import re

from conformance.scan.knowing.answers import answer_of
from conformance.scan.knowing.facts import (
    ANY,
    NOTHING,
    UNKNOWN,
    Facts,
    Guard,
    Pair,
    excluded,
    known,
)
from conformance.scan.knowing.flags import asked, flag, matched, probed_backend, version
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.knowing.scopes import FunctionNode, Scope
from conformance.scan.knowing.signatures import parameters_of
from conformance.scan.knowing.vocabulary import (
    ACCELERATORS,
    is_negated,
    named_backends,
    only_gpu,
)
from conformance.scan.reading.nodes import parts_of

_DEPTH = 4
_OFF = re.compile(r"(?i)(?:none|off|never|disabled?|no_graphs?)\Z")
_ORDERS = (ast.Gt, ast.GtE, ast.Lt, ast.LtE)
_PLATFORMS = frozenset({"sys.platform", "platform.system"})
_TYPE_ATTRIBUTES = {"is_cuda": "cuda", "is_mps": "mps", "is_xpu": "xpu", "is_cpu": "cpu"}


class Conditions:
    """Evaluates conditions over the lattice of facts, following names within the file."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._active: set[int] = set()
        self._values: dict[int, Pair] = {}
        self._answers: dict[int, ast.expr | None] = {}
        self._on: frozenset[str] | None = None

    def of(self, test: ast.expr, scope: Scope, depth: int = 0) -> Pair:
        """Facts when the test is true, and when it is false."""
        match test:
            case ast.UnaryOp(op=ast.Not()):
                true, false = self.of(test.operand, scope, depth)
                return false, true
            case ast.BoolOp():
                return self._boolean(test, scope, depth)
            case ast.NamedExpr():
                return self.of(test.value, scope, depth)
            case ast.Constant(value=False | 0):
                # What stands under `if False:` never runs.
                return known("try", ANY, node=test), NOTHING
            case ast.Compare():
                return self._compare(test, scope, depth)
            case ast.Call():
                return self._call(test, scope, depth)
            case ast.Name() | ast.Attribute():
                return self._named(test, scope, depth)
            case ast.Subscript(slice=ast.Constant(value=str(text))):
                return flag(text, test)
            case ast.IfExp():
                first, second = self.of(test.body, scope, depth), self.of(test.orelse, scope, depth)
                if isinstance(test.orelse, ast.Constant) and not test.orelse.value:
                    # `stream = torch.cuda.Stream() if use_cuda else None`
                    return self.of(test.test, scope, depth)[0].both(first[0]), NOTHING
                return first[0].either(second[0]), first[1].either(second[1])
            case _:
                return UNKNOWN

    def _boolean(self, test: ast.BoolOp, scope: Scope, depth: int) -> Pair:
        conjunction = isinstance(test.op, ast.And)
        through = NOTHING
        stop: Facts | None = None
        pairs = [self.of(value, scope, depth) for value in test.values]
        probed = conjunction and any(
            guard.kind == "probe" for true, _ in pairs for guard in true.known.values()
        )
        for value, (true, false) in zip(test.values, pairs, strict=True):
            if probed and _is_opt_out(value):
                true = NOTHING  # `and not args.no_cuda`: what is asked is still what there is
            go, leave = (true, false) if conjunction else (false, true)
            left = through.both(leave)
            stop = left if stop is None else stop.either(left)
            through = through.both(go)
        stop = stop or NOTHING
        return (through, stop) if conjunction else (stop, through)

    def _compare(self, test: ast.Compare, scope: Scope, depth: int) -> Pair:
        if len(test.ops) != 1:
            return UNKNOWN
        left, op, right = test.left, test.ops[0], test.comparators[0]
        if isinstance(op, _ORDERS):
            if self._is_version(left, scope):
                return version(isinstance(op, ast.Gt | ast.GtE), test)
            if isinstance(op, ast.Gt) and isinstance(left, ast.Call):
                # `torch.cuda.device_count() > rank`
                return self.of(left, scope, depth)[0], NOTHING
        if isinstance(right, ast.Constant) and not isinstance(right.value, str):
            return self._against_constant(left, op, right.value, scope, depth)
        negative = isinstance(op, ast.NotEq | ast.NotIn | ast.IsNot)
        if not negative and not isinstance(op, ast.Eq | ast.In | ast.Is):
            return UNKNOWN
        pair = self._membership(left, right, isinstance(op, ast.In | ast.NotIn), scope, test)
        return (pair[1], pair[0]) if negative else pair

    def _is_version(self, node: ast.expr, scope: Scope) -> bool:
        """``torch.__version__``, parsed or not."""
        if isinstance(node, ast.Call) and len(node.args) == 1:
            node = node.args[0]
        return self._resolver.dotted(node, scope) == "torch.__version__"

    def _against_constant(
        self, left: ast.expr, op: ast.cmpop, value: object, scope: Scope, depth: int
    ) -> Pair:
        """``count > 0``, ``torch.version.cuda is not None``, ``flag is True``."""
        pair = self.of(left, scope, depth)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(op, ast.Gt | ast.GtE) or (isinstance(op, ast.NotEq) and value == 0):
                return pair
            if (isinstance(op, ast.Eq) and value == 0) or isinstance(op, ast.Lt):
                return pair[1], pair[0]
            return (pair[0], NOTHING) if isinstance(op, ast.Eq) else UNKNOWN
        falsy = value is None or value is False
        same = isinstance(op, ast.Is | ast.Eq)
        return (pair[1], pair[0]) if falsy == same else pair

    def _membership(
        self, left: ast.expr, right: ast.expr, inside: bool, scope: Scope, test: ast.expr
    ) -> Pair:
        """``device.type == "cuda"``, ``"cuda" in str(device)``, ``device in ("cuda", "xpu")``."""
        resolver = self._resolver
        if resolver.dotted(_callee(left), scope) in _PLATFORMS:
            text = right.value if isinstance(right, ast.Constant) else None
            if text in ("darwin", "Darwin"):
                return known("test", "mps", node=test), excluded("mps", node=test)
            return UNKNOWN
        devices = resolver.device_set(right, scope)
        if devices is None:
            devices = resolver.device_set(left, scope)
        if not devices:
            # A backend's engine or setting: `backend == "nccl"`, `"CUDA_HOME" in os.environ`.
            for side in (right, left):
                text = resolver.text(side, scope)
                if text is not None and len(text) < 40:
                    return flag(text, test)
                members = side.elts if isinstance(side, ast.Tuple | ast.List) else [side]
                for member in members:
                    # `provider in ("CUDAExecutionProvider", ...)`
                    text = resolver.text(member, scope)
                    if text is not None and len(text) < 40 and named_backends(text):
                        return flag(text, test)
                    # A member of an enumeration: `RNGType.CUDA`, `DLDeviceType.kDLCUDA`, or one
                    # of a mode that CUDA alone has: `self.cuda_graphs_mode is Mode.FULL`.
                    if isinstance(member, ast.Attribute) and member.attr != member.attr.lower():
                        pair = flag(member.attr, test)
                        if pair is UNKNOWN and not _OFF.match(member.attr):
                            word = getattr(left, "attr", getattr(left, "id", ""))
                            return flag(word, test)[0], NOTHING
                        return pair
            return UNKNOWN
        named = [device for device in devices if device in ACCELERATORS]
        if "cpu" in devices and named:
            return NOTHING, excluded(*devices, node=test)
        if not inside and len(devices) > 1:
            return UNKNOWN
        return known("test", *devices, node=test), excluded(*devices, node=test)

    def _call(self, test: ast.Call, scope: Scope, depth: int) -> Pair:
        function = test.func
        dotted = self._resolver.dotted(function, scope) or ""
        backend = probed_backend(dotted)
        if backend is not None:
            return known("probe", backend, node=test), excluded(backend, node=test)
        pair = self._builtin(test, dotted, scope, depth)
        if pair is None and isinstance(function, ast.Attribute):
            pair = matched(test, function)
        if pair is None and depth < _DEPTH:
            pair = self._helper(function, scope, depth)
        return asked(test, dotted) if pair is None else pair

    def _builtin(self, test: ast.Call, dotted: str, scope: Scope, depth: int) -> Pair | None:
        """What Python's own functions make of a condition, None for any other function."""
        if dotted in ("bool", "int", "len") and len(test.args) == 1:
            return self.of(test.args[0], scope, depth)
        if dotted in ("any", "all") and test.args:
            inner = test.args[0]
            if isinstance(inner, ast.GeneratorExp | ast.ListComp):
                return self.of(inner.elt, scope, depth)[0], NOTHING
            if isinstance(inner, ast.List | ast.Tuple) and inner.elts:
                op: ast.boolop = ast.Or() if dotted == "any" else ast.And()
                return self.of(ast.BoolOp(op, inner.elts), scope, depth)
            return UNKNOWN
        if dotted == "hasattr" and len(test.args) == 2:
            return self._hasattr(test, scope)
        if dotted == "isinstance" and len(test.args) == 2:
            name = self._resolver.dotted(test.args[1], scope) or ""
            backends = named_backends(name)
            return (known("test", *backends, node=test), NOTHING) if backends else UNKNOWN
        return None

    def _hasattr(self, test: ast.Call, scope: Scope) -> Pair:
        owner = self._resolver.dotted(test.args[0], scope)
        name = test.args[1]
        if owner in ("torch", "torch.backends", "torch._C") and isinstance(name, ast.Constant):
            backends = named_backends(str(name.value))
            # Every build has these two attributes, so having them teaches nothing.
            if backends and backends[0] not in ("cuda", "mps"):
                return known("probe", *backends, node=test), excluded(*backends, node=test)
            if backends:
                return known("name", *backends, node=test), excluded(*backends, node=test)
            # Anything else that may be missing is missing in an older PyTorch.
            return version(True, test) if owner == "torch" else UNKNOWN
        # `torch.cuda.memory_reserved` has older names.
        return version(True, test) if owner in ("torch.cuda", "torch.cuda.amp") else UNKNOWN

    def _helper(self, function: ast.expr, scope: Scope, depth: int) -> Pair | None:
        """A test moved into a function of the same file."""
        node = self._resolver.definition(function, scope)
        if not isinstance(node, FunctionNode) or id(node) in self._active:
            return None
        if id(node) not in self._answers:
            self._answers[id(node)] = answer_of(node)
        answer = self._answers[id(node)]
        inner = self._resolver.scopes.of.get(id(node))
        if answer is None or inner is None:
            return None
        self._active.add(id(node))
        try:
            pair = self.of(answer, inner, depth + 1)
        finally:
            self._active.discard(id(node))
        silent = not any(side.known or side.excluded for side in pair)
        return None if silent else (pair[0].seen_at(function), pair[1].seen_at(function))

    def _named(self, test: ast.Name | ast.Attribute, scope: Scope, depth: int) -> Pair:
        resolver = self._resolver
        dotted = resolver.dotted(test, scope) or ""
        if dotted in ("torch.version.cuda", "torch.version.hip"):
            return known("probe", "cuda", node=test), excluded("cuda", node=test)
        if dotted.startswith("torch.cuda."):
            return known("probe", "cuda", node=test), excluded("cuda", node=test)
        word = test.attr if isinstance(test, ast.Attribute) else test.id
        if isinstance(test, ast.Attribute) and word in _TYPE_ATTRIBUTES:
            backend = _TYPE_ATTRIBUTES[word]
            return known("test", backend, node=test), excluded(backend, node=test)
        if depth < _DEPTH:
            value = resolver.only_value(test, scope)
            if value is not None and id(value[0]) not in self._active:
                pair = self._value(value[0], value[1], depth)
                if pair[0] is not NOTHING or pair[1] is not NOTHING:
                    return pair[0].seen_at(test), pair[1].seen_at(test)
            true = self._sometimes(test, scope, depth).both(self._narrowed(test, scope, depth))
            if true.known:
                return true.seen_at(test), NOTHING
        if self.is_on(test, scope) or (
            only_gpu(word) and (_is_option(test) or self._is_given(test, scope))
        ):
            true, false = flag(word, test)
            asked_for = {name: Guard("asked", test) for name in true.known}
            return Facts(asked_for, true.excluded), Facts({}, false.excluded)
        return flag(word, test)

    def is_on(self, test: ast.expr, scope: Scope) -> bool:
        """Whether a parameter or an option asks for CUDA unless somebody switches it off
        (``to_cuda=True``, ``add_argument("--cuda", default=True)``)."""
        word = getattr(test, "attr", getattr(test, "id", ""))
        if "cuda" not in word or is_negated(word):
            return False
        if isinstance(test, ast.Attribute):
            return _is_option(test) and word in self._options()
        owner = self._resolver.bounds(test, scope)[1].node
        return (
            isinstance(test, ast.Name)
            and self._is_given(test, scope)
            and isinstance(owner, FunctionNode)
            and any(p.name == word and _is_true(p.default) for p in parameters_of(owner)[0])
        )

    def _options(self) -> frozenset[str]:
        """Options of the file's command line that are on by default."""
        if self._on is None:
            self._on = frozenset(
                call.args[-1].value.lstrip("-").replace("-", "_")
                for call in parts_of(self._resolver.scopes.module.node)
                if isinstance(call, ast.Call)
                and getattr(call.func, "attr", "") == "add_argument"
                and call.args
                and isinstance(call.args[-1], ast.Constant)
                and isinstance(call.args[-1].value, str)
                and any(k.arg == "default" and _is_true(k.value) for k in call.keywords)
            )
            # Whoever stores in one asks first.
            self._on -= {
                part.attr
                for part in parts_of(self._resolver.scopes.module.node)
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
            }
        return self._on

    def _is_given(self, test: ast.Name | ast.Attribute, scope: Scope) -> bool:
        """Whether a variable is a parameter, and nothing else is ever stored in it."""
        bounds, _ = self._resolver.bounds(test, scope)
        return isinstance(test, ast.Name) and len(bounds) == 1 and bounds[0].kind == "param"

    def _sometimes(self, test: ast.Name | ast.Attribute, scope: Scope, depth: int) -> Facts:
        """What a variable teaches when true that is bound to a probe here and to False there, or
        to something of CUDA's and to None."""
        bounds, owner = self._resolver.bounds(test, scope)
        result: Facts | None = None
        for bound in bounds:
            if bound.kind != "value" or bound.value is None:
                return NOTHING
            if _is_empty(bound.value):
                continue
            if isinstance(bound.value, ast.Constant) and bound.value.value is True:
                # `for x in inputs: if x.is_cuda: wait = True`
                test_of_it = self._resolver.scopes.flag_tests.get(id(bound.value))
                if test_of_it is None or depth >= _DEPTH:
                    return NOTHING
                facts = self.of(test_of_it, owner, depth + 1)[0]
                result = facts if result is None else result.either(facts)
                continue
            if id(bound.value) in self._active:
                return NOTHING
            made = isinstance(bound.value, ast.Call) and self._resolver.dotted(
                bound.value.func, owner
            )
            if made and made.startswith("torch.cuda."):
                facts = known("name", "cuda", node=test)
                result = facts if result is None else result.either(facts)
                continue
            facts = self._value(bound.value, owner, depth)[0]
            result = facts if result is None else result.either(facts)
        return result or NOTHING

    def _narrowed(self, test: ast.Name | ast.Attribute, scope: Scope, depth: int) -> Facts:
        """What a parameter teaches when true that its function first made one with a probe:
        ``timed = timed and torch.cuda.is_available()``."""
        bounds, owner = self._resolver.bounds(test, scope)
        values = [bound.value for bound in bounds if bound.value is not None]
        if not isinstance(test, ast.Name) or len(values) != 1 or len(bounds) != 2:
            return NOTHING
        value = values[0]
        if not isinstance(value, ast.BoolOp) or not isinstance(value.op, ast.And):
            return NOTHING
        own = any(isinstance(v, ast.Name) and v.id == test.id for v in value.values)
        straight = any(getattr(s, "value", 0) is value for s in getattr(owner.node, "body", ()))
        if not own or not straight or value.lineno >= test.lineno or id(value) in self._active:
            return NOTHING
        return self._value(value, owner, depth)[0]

    def filled(self, held: ast.expr, scope: Scope) -> Facts:
        """What a variable teaches where it is not empty: a loop over it has something to do."""
        return self._sometimes(held, scope, 0) if isinstance(held, ast.Name) else NOTHING

    def _value(self, value: ast.expr, scope: Scope, depth: int) -> Pair:
        """What the expression behind a variable says; worked out once."""
        held = self._values.get(id(value))
        if held is None:
            self._active.add(id(value))
            try:
                held = self.of(value, scope, depth + 1)
            finally:
                self._active.discard(id(value))
            self._values[id(value)] = held
        return held


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _is_opt_out(test: ast.expr) -> bool:
    """``not args.no_cuda``."""
    if not isinstance(test, ast.UnaryOp) or not isinstance(test.op, ast.Not):
        return False
    word = getattr(test.operand, "attr", getattr(test.operand, "id", ""))
    return is_negated(word)


def _is_empty(node: ast.expr) -> bool:
    """Whether a value is false whatever happens: None, False, an empty list."""
    if isinstance(node, ast.List | ast.Tuple):
        return not node.elts
    return isinstance(node, ast.Constant) and not node.value


def _callee(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


def _is_option(test: ast.expr) -> bool:
    """``args.gpu``: what somebody asked for on the command line or in a config."""
    return (
        isinstance(test, ast.Attribute)
        and isinstance(test.value, ast.Name)
        and test.value.id in ("args", "opt", "opts", "options", "config", "cfg", "hparams", "hps")
    )
