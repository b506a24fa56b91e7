"""Which heads of which layers: a table, as callers write it, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from acestep.errors import RequestError

HeadTable = Mapping[int, Sequence[int]]


def checked_table(heads: Mapping[Any, Sequence[int]]) -> dict[int, list[int]]:
    """A table of layers to heads; layers may be text, as they are in JSON.

    Raises:
        RequestError: it names no head, or is not made of integers.
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
    return table
