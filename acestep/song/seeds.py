"""The seeds of a batch: those given, and those that are counted up or drawn."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence

_BITS = 32


def completed(given: Sequence[int | None], songs: int, *, counting: bool = True) -> tuple[int, ...]:
    """A seed for each song; all that are drawn differ from the others.

    Args:
        given: of the first songs; None is drawn.
        songs: how many there are.
        counting: songs after the last given seed count up from it. Where that one is drawn,
            or with `counting` off, they are drawn too.
    """
    seeds: list[int | None] = list(given[:songs])
    last = seeds[-1] if seeds else None
    taken = {seed for seed in seeds if seed is not None}
    while len(seeds) < songs:
        if counting and last is not None:
            last = next(seed for seed in itertools.count(last + 1) if seed not in taken)
            taken.add(last)
        seeds.append(last if counting else None)
    made = []
    for seed in seeds:
        drawn = seed
        while drawn is None or (seed is None and drawn in taken):
            drawn = secrets.randbits(_BITS)
        taken.add(drawn)
        made.append(drawn)
    return tuple(made)
