"""Nothing public is forgotten: every public callable has a case or a reason why it needs none."""

from __future__ import annotations

from conformance.entrypoints import applying, missing, survey
from conformance.suite.declared import declared_by_suite
from conformance.suite.exempt import EXEMPT
from conformance.tree import Absent, Tree


def test_every_public_callable_is_covered(tree: Tree) -> None:
    if not tree.own:
        raise Absent("another tree's own functions are not this suite's to know")
    surface = survey(tree)
    exempt = applying(EXEMPT, surface.unimportable)
    uncovered, stale = missing(surface.callables, declared_by_suite(), exempt)
    assert not uncovered, f"no case covers, and no reason excuses: {', '.join(uncovered)}"
    assert not stale, f"excused without need: {', '.join(stale)}"
