"""Asks trees made for a test the facts, in this process, and leaves no trace of them there."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trees_made import QUESTIONS

from conformance.targets import find
from conformance.tree import PACKAGE, Absent, Blocked, ImportFailed, Tree, forget, install
from conformance.trees.asking import Asking, Told, Wrong
from conformance.trees.missing import Missing

Verdict = tuple[str, str, str]


@pytest.fixture
def other_trees() -> Iterator[None]:
    """Whatever tree a test installs in this process is gone after it, and ours is back."""
    kept = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == PACKAGE}
    finders = list(sys.meta_path)
    yield
    forget()
    sys.meta_path[:] = finders
    sys.modules.update(kept)


@pytest.fixture
def verdicts(tmp_path: Path, other_trees: None) -> Callable[..., dict[str, Verdict]]:
    """`verdicts(root, target, *facts)`: each fact's outcome, place and sentence."""

    def ask(root: Path, name: str, *facts: str) -> dict[str, Verdict]:
        tree, target = Tree(root, own=False), find()[name]
        install(tree)
        found = {}
        with (
            warnings.catch_warnings(),
            Missing().standing_in() as missing,
            target.activate(packages=(PACKAGE,)),
        ):
            warnings.simplefilter("ignore")
            for fact in facts:
                missing.decided.clear()
                found[fact] = _verdict(QUESTIONS[fact], Asking(tree, target, tmp_path), missing)
        return found

    return ask


def _verdict(question: Callable[[Asking], Told], ask: Asking, missing: Any) -> Verdict:
    try:
        told = question(ask)
    except Wrong as error:
        if (blocked := missing.had_a_part_in(error)) is not None:
            return "blocked", "", str(blocked)
        return "fail", error.place, str(error)
    except Absent as error:
        return "absent", "", str(error)
    except Blocked as error:
        return "blocked", "", str(error)
    except ImportFailed as error:
        return "broken", "", str(error)
    if missing.decided:
        return "blocked", "", f"needs {', '.join(missing.decided)}"
    return "pass", told.place, told.sentence
