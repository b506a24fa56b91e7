"""What is wrong with a device literal, once it is known where it ends up."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from conformance.scan.findings import Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Hook
from conformance.scan.knowing.circumstances import is_left_by_one, is_of_process_group
from conformance.scan.knowing.leaves import Leaf
from conformance.scan.knowing.scopes import Key, Scope
from conformance.scan.knowing.shapes import is_for_collective, names_no_device, only_not_cpu
from conformance.scan.knowing.vocabulary import ACCELERATORS, asks_other, device_type
from conformance.scan.reading.nodes import parts_of

_OTHERS = ACCELERATORS - {"cuda", "hip"}
#: How many values are followed to find out what was asked.
_STEPS = 8


@dataclass(frozen=True, slots=True)
class Placement:
    """A device literal that decides where something is put.

    ``kind`` says what is wrong with it: ``literal`` (nothing else is possible), ``default`` (it
    stands in for a missing value), ``selection`` (chosen between CUDA and the CPU only) or
    ``two-valued`` (taken because it is not the CPU). ``how`` names the place it reaches, and
    ``known`` the other accelerators that a selection knows.
    """

    kind: str
    node: ast.expr
    device: str
    how: str
    scope: Scope
    severity: Severity
    probe: ast.AST | None = None
    known: tuple[str, ...] = ()


class Judge:
    """Decides what kind of placement a literal is, and shows it to the rules."""

    def __init__(self, context: Context, hooks: Iterable[Hook]) -> None:
        self.context = context
        self.hooks = list(hooks)

    def __call__(
        self,
        leaves: list[Leaf],
        how: str,
        scope: Scope,
        *,
        others: list[Leaf] | None = None,
        standing_in: bool = False,
        severity: Severity | None = None,
        key: Key | None = None,
    ) -> None:
        """Judge every value that a device can take; ``others`` are those of all its bindings."""
        every = others or leaves
        if any(names_no_device(leaf) for leaf in every):
            return  # the choice is between words of another kind
        devices = {leaf.device for leaf in every if leaf.device is not None}
        accelerators = devices & ACCELERATORS
        for leaf in leaves:
            if leaf.device not in ACCELERATORS or leaf.device is None:
                continue
            if id(leaf.node) in self.context.settled:
                continue  # said already, or of no consequence
            has_cpu = "cpu" in devices
            # `if use_cuda: device = "cuda"` beside another binding is a choice as well.
            chosen = leaf.chosen or len(leaves) < len(every)
            if len(accelerators) > 1 and chosen:
                # The choice knows more than one accelerator; a Mac's need not be among them.
                found = self._without_mac(leaf, devices, how, scope, key)
                for hook in self.hooks if found is not None else ():
                    hook(self.context, found)
                continue
            if leaf.chosen and severity is None and _asked(self.context, every, scope):
                severity = Severity.WARNING  # it fails only where there is no accelerator at all
            placement = self._classify(
                leaf, has_cpu, chosen, how, scope, standing_in, severity, key
            )
            if placement is not None:
                for hook in self.hooks:
                    hook(self.context, placement)

    def _without_mac(
        self, leaf: Leaf, devices: set[str], how: str, scope: Scope, key: Key | None
    ) -> Placement | None:
        """An automatic selection of CUDA, a third accelerator or the CPU: a Mac gets the CPU."""
        guard = leaf.facts.guard("cuda")
        if leaf.device != "cuda" or guard is None or guard.kind != "probe":
            return None
        if not {"mps", "cpu"}.isdisjoint({*leaf.facts.excluded}) or "mps" in devices:
            return None
        if "cpu" not in devices or self.context.choice_serves(leaf.node, scope, key):
            return None
        known = tuple(sorted(devices & _OTHERS))
        return Placement(
            "selection", leaf.node, "cuda", how, scope, Severity.WARNING, guard.node, known
        )

    def _classify(
        self,
        leaf: Leaf,
        has_cpu: bool,
        chosen: bool,
        how: str,
        scope: Scope,
        standing_in: bool,
        severity: Severity | None,
        key: Key | None,
    ) -> Placement | None:
        device = leaf.device or ""
        level, choice = severity or Severity.ERROR, Severity.WARNING
        if self.context.in_tests and how.startswith("`") and "." in how:
            level = choice = Severity.NOTE  # what stands in for a tested object has its fields
        elif self.context.in_tests and device != "cuda":
            level = Severity.NOTE  # a test that names a rarer backend means that one
        guard = leaf.facts.guard(device)
        context = self.context
        if device == "cuda" and is_for_collective(context, key, scope):
            if has_cpu and chosen:
                return None  # NCCL or gloo: no process group has a Mac's GPU
            level = min(level, Severity.NOTE)
        elif (
            device == "cuda"
            and not has_cpu
            and (is_of_process_group(context, leaf.node, scope) or is_left_by_one(context))
        ):
            level = min(level, Severity.NOTE)
        elif device == "cuda" and has_cpu and is_of_process_group(context, leaf.node, scope):
            level = choice = Severity.NOTE  # gloo, on the CPU, is what else there is
        if guard is None:
            if set(leaf.facts.excluded) & ACCELERATORS - {device} and (
                leaf.chosen or only_not_cpu(leaf.facts)
            ):
                return None  # the choice knows more than one accelerator
            if leaf.fallback or standing_in:
                return Placement("default", leaf.node, device, how, scope, level)
            if only_not_cpu(leaf.facts):
                return Placement("two-valued", leaf.node, device, how, scope, level)
            if has_cpu:
                asked = leaf.facts.known.get(device)
                return Placement(
                    "selection",
                    leaf.node,
                    device,
                    how,
                    scope,
                    choice,
                    asked.node if asked is not None else None,
                )
            return Placement("literal", leaf.node, device, how, scope, level)
        if guard.kind == "test" and has_cpu and leaf.chosen and device == "cuda":
            if context.choice_serves(leaf.node, scope, key):
                return None
            # Known by a test for CUDA, so that it is the CPU that all others fall to.
            return Placement(
                "two-valued",
                leaf.node,
                device,
                how,
                scope,
                choice,
                guard.node or leaf.node,
            )
        # `"cuda" if backend == "nccl" else "cpu"`: the engine decides, and rightly.
        # And what a function's name declares (no test does) chooses nothing.
        engine = guard.node is None or isinstance(guard.node, ast.Compare | ast.ClassDef)
        selecting = guard.kind == "probe" or (
            guard.kind == "name" and has_cpu and chosen and not engine
        )
        if selecting and device == "cuda" and not context.choice_serves(leaf.node, scope, key):
            # An argument with nothing else to choose comes on top: one more case, a warm-up. A
            # test that moves things where CUDA is found runs on the CPU anywhere else.
            more = not has_cpu and not chosen
            if more and (context.in_tests or how.endswith("=") or how[0] == '"'):
                return None
            return Placement("selection", leaf.node, device, how, scope, choice, guard.node)
        return None


def _asked(context: Context, leaves: list[Leaf], scope: Scope) -> bool:
    """Whether one of the values is what was found by asking for other accelerators as well."""
    resolver = context.resolver
    stack = [leaf.node for leaf in leaves if leaf.device is None]
    for node in stack:
        for part in parts_of(node):
            if isinstance(part, ast.Attribute) and asks_other(part.attr):
                return True
            if isinstance(part, ast.Name):
                if asks_other(part.id):
                    return True
                value = resolver.only_value(part, scope)
                if value is not None and len(stack) < _STEPS:
                    stack.append(value[0])
            text = part.value if isinstance(part, ast.Constant) else None
            if isinstance(text, str) and device_type(text) in _OTHERS:
                return True
    return False
