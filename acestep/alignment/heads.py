"""Which of the transformer's heads follow the lyrics, by checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from acestep.engines.heads import HeadTable, checked_table
from acestep.errors import CheckpointError, RequestError

TURBO_HEADS: HeadTable = {2: [6], 3: [10, 11], 4: [3], 5: [8, 9], 6: [8]}
"""Layer to heads that follow the lyrics in `acestep-v15-turbo` (2B); from ACE-Step 1.5."""

DEMO_HEADS: HeadTable = {2: [1], 3: [0, 4], 4: [3]}
"""Heads that exist in the built-in checkpoint. It does not sing: they follow nothing."""

# Matched against the checkpoint's folder name, in order. Only tables that someone measured
# on trained weights belong here; sizes and finetunes put the same work in other heads.
_TABLES: tuple[tuple[str, HeadTable], ...] = (
    (r"demo", DEMO_HEADS),
    (r"turbo|acestep-v15-turbo(-diffusers)?", TURBO_HEADS),
)


def alignment_heads(
    checkpoint: str, override: Mapping[Any, Sequence[int]] | None = None
) -> dict[int, list[int]]:
    """The heads to read lyrics from: the override if given, else the checkpoint's table.

    Args:
        checkpoint: its name, for example `acestep-v15-turbo`.
        override: layer to heads; layers may be text, as they are in JSON.

    Raises:
        CheckpointError: the checkpoint has no table and nothing overrides it.
        RequestError: the override names no head, or is not made of integers.
    """
    if override is not None:
        return checked_table(override)
    for pattern, table in _TABLES:
        if re.fullmatch(pattern, checkpoint.lower()):
            return {layer: list(heads) for layer, heads in table.items()}
    raise CheckpointError(
        f"no table of lyric heads is known for checkpoint '{checkpoint}' (known: "
        f"acestep-v15-turbo, demo); give one, layer to heads, for example '2:6 3:10,11'"
    )


def parse_heads(text: str) -> dict[int, list[int]]:
    """A table written as `layer:head,head layer:head`.

    Raises:
        RequestError: the text is not of that form.
    """
    table: dict[int, list[int]] = {}
    for item in text.split():
        match = re.fullmatch(r"(\d+):(\d+(?:,\d+)*)", item)
        if match is None:
            raise RequestError(
                f"lyric heads '{item}' are not of the form layer:head,head; "
                "write for example '2:6 3:10,11'"
            )
        table.setdefault(int(match[1]), []).extend(int(head) for head in match[2].split(","))
    return checked_table(table)
