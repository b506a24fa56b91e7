"""Another tree's own functions: that they import, and how many of them a run enters."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conformance.tree import Absent, Blocked, Tree
from conformance.trees.asking import Asking
from conformance.trees.exercise import exercised
from conformance.trees.surface import Share, shares

Note = Callable[[list[Share], list[str]], None]


@pytest.mark.names_cuda("the tree's functions are called with whatever fits them")
@pytest.mark.asks_a_fact
def test_its_functions_are_entered(tree: Tree, ask: Asking, note_shares: Note) -> None:
    """All public functions of the parts about devices are called with what fits their names."""
    if tree.kin:
        raise Absent("our own functions have cases of their own")
    found = exercised(tree, ask.target, ask.folder)
    if not found["entered"]:
        raise Blocked("its functions could not be called in the time there is")
    note_shares(shares(tree, found["entered"]), found["touches"])
