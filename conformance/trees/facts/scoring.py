"""S1: the alignment score is computed where its inputs lie, in numbers that the device has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from conformance.tree import first_line
from conformance.trees.asking import Asking, Told, Wrong, bare, filled
from conformance.trees.layouts import place_of

TOKENS = 7
_WIDTH = 80


class Words:
    """A tokenizer that is never asked for more than a letter a token."""

    def decode(self, token_ids: Any, **_: Any) -> str:
        """One letter for each token."""
        return "a" * len(list(token_ids))


def scored_where_it_lies(ask: Asking) -> Told:
    """A perfect diagonal scores 1, from numpy and from tensors on the device."""
    scorer = place_of(ask.tree, "scorer")
    made = bare(scorer.value, **filled(scorer.value, {"tokenizer": Words()}))
    wrong: dict[tuple[str, str], list[str]] = {}
    for kind in ("numpy", ask.target.device):
        try:
            with ask.questions():
                found = made.calculate_score(*_diagonal(kind))
        except Exception as error:  # noqa: BLE001 (whatever it is, the tree raised it)
            wrong.setdefault((ask.line_of(error), _first(error)), []).append(kind)
            continue
        score = _score_in(found)
        if score is None or abs(score - 1) > 1e-3:
            told = f"a perfect diagonal scores {score}"
            wrong.setdefault((scorer.line, told), []).append(kind)
    if wrong:
        told = "; ".join(
            f"from {' and '.join(kinds)} at {place.rpartition('/')[2]}: {text}"
            for (place, text), kinds in wrong.items()
        )
        raise Wrong(_both([place for place, _ in wrong]), f"the score cannot be had {told}")
    return Told(scorer.line, f"the score is had from numpy and from {ask.target.device} tensors")


def _diagonal(kind: str) -> list[Any]:
    energy = np.eye(TOKENS, dtype=np.float32)
    mask, path = np.ones(TOKENS, np.int64), np.repeat(np.arange(TOKENS)[:, None], 2, axis=1)
    if kind == "numpy":
        return [energy, mask, path]
    return [torch.from_numpy(part).to(kind) for part in (energy, mask, path)]


def _both(places: list[str]) -> str:
    """Lines of one file as one place: `file:line and :line`."""
    first, *others = dict.fromkeys(place for place in places if place) or [""]
    file = first.rpartition(":")[0]
    same = [place.removeprefix(file) for place in others if place.startswith(f"{file}:")]
    return " and ".join([first, *same])


def _score_in(found: Any) -> float | None:
    """The score of a result: a mapping or an object with it among its metrics, or a number."""
    if isinstance(found, dict):
        found = found.get("lyrics_score", found.get("score"))
    else:
        found = getattr(found, "lyrics_score", found)
    try:
        return float(found)
    except (TypeError, ValueError):
        return None


def _first(error: BaseException) -> str:
    text = first_line(error)
    return f"{type(error).__name__}: {text if len(text) <= _WIDTH else f'{text[:_WIDTH]}…'}"
