"""Public callables that need no case, each under the reason why no device reaches it."""

from __future__ import annotations

EXEMPT: dict[str, tuple[str, ...]] = {}
