"""Replaces attributes for a while and puts back exactly what was there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Patches:
    """Attributes replaced, in order; `undo` restores each to what it was, or to its absence."""

    def __init__(self) -> None:
        self._undone: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> Any:
        """Replaces `owner.name`; returns the attribute that was reachable under that name."""
        own = vars(owner).get(name, _ABSENT)
        reached = getattr(owner, name, None)
        self._undone.append((owner, name, own))
        setattr(owner, name, value)
        return reached

    def later(self, action: Callable[[], None]) -> None:
        """Has `undo` call `action`, in its turn."""
        self._undone.append((action, "", None))

    def undo(self) -> None:
        """Restores everything, last change first."""
        while self._undone:
            owner, name, own = self._undone.pop()
            if not name:
                owner()
            elif own is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
