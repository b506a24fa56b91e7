"""Who may ask: the key of the service, compared in constant time, and not guessed at leisure."""

from __future__ import annotations

import hmac
import threading
import time
from collections import deque
from collections.abc import Mapping

from acestep.server.options import Limits

_ADDRESSES = 10000


class Keys:
    """The one key that opens the service, or none.

    Args:
        key: None lets everybody in.
        limits: how many wrong keys an address may send in which time.
    """

    def __init__(self, key: str | None, limits: Limits) -> None:
        self._key, self._limits = key, limits
        self._wrong: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    @property
    def needed(self) -> bool:
        """Whether a key is asked for."""
        return self._key is not None

    def right(self, given: str | None) -> bool:
        """Whether a key is the right one, in a time that does not depend on where it differs."""
        if self._key is None:
            return True
        return hmac.compare_digest((given or "").encode("utf-8", "replace"), self._key.encode())

    def seconds_to_wait(self, address: str) -> float:
        """How long an address that sent too many wrong keys must wait; 0 for all others."""
        with self._lock:
            tries, now = self._wrong.get(address), time.monotonic()
            if tries is None:
                return 0.0
            while tries and now - tries[0] > self._limits.wrong_window:
                tries.popleft()
            if not tries:
                del self._wrong[address]
                return 0.0
            if len(tries) < self._limits.wrong_keys:
                return 0.0
            return self._limits.wrong_window - (now - tries[0])

    def note_wrong(self, address: str) -> None:
        """An address sent a wrong key."""
        with self._lock:
            if address not in self._wrong and len(self._wrong) >= _ADDRESSES:
                self._wrong.pop(next(iter(self._wrong)))
            self._wrong.setdefault(address, deque()).append(time.monotonic())


def in_header(headers: Mapping[str, str]) -> str | None:
    """The key of `Authorization: Bearer KEY`, or None where there is no such header."""
    text = headers.get("authorization")
    if text is None:
        return None
    kind, _, key = text.partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""
