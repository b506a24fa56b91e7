"""Which heads of which layers: a table, as callers write it, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from acestep.errors import RequestError

HeadTable = Mapping[int, Sequence[int]]


def checked_table(
    heads: Mapping[Any, Sequence[int]], has: tuple[int, int] | None = None
) -> dict[int, list[int]]:
    """A table of layers to heads; layers may be text, as they are in JSON.

    Args:
        heads: the table.
        has: how many layers a model has, and heads in each; None where that is not known yet.

    Raises:
        RequestError: it names no head, is not made of integers, or names what the model lacks.
    """
    try:
        table = {int(layer): [int(head) for head in members] for layer, members in heads.items()}
    except (TypeError, ValueError, AttributeError):
        raise RequestError(
            f"lyric heads must map layers to lists of heads, as in {{2: [6], 3: [10, 11]}}, "
            f"got {heads!r}"
        ) from None
    if not table or not all(table.values()):
        raise RequestError(f"lyric heads must name at least one head a layer, got {table}")
    if min(table) < 0 or min(min(members) for members in table.values()) < 0:
        raise RequestError(f"layers and heads are counted from 0, got {table}")
    for layer, head in ((layer, head) for layer, members in table.items() for head in members):
        if has is not None and (layer >= has[0] or head >= has[1]):
            raise RequestError(
                f"lyric head {layer}:{head} does not exist: this model has {has[0]} layers of "
                f"{has[1]} heads, counted from 0"
            )
    return table
