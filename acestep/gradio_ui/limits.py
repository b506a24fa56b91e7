"""How much one visitor, one upload and the whole page may take."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
DAY = 86400.0


@dataclass(frozen=True)
class Limits:
    """Bounds that keep the page answering; sizes in bytes, times in seconds.

    Attributes:
        upload_bytes, upload_seconds: of one audio file.
        body_bytes: of any other request.
        body_pause: longest wait for the next part of a request's body.
        prompt_chars, lyrics_chars: longest texts.
        waiting: requests that wait or run, of everybody together.
        waiting_per_visitor, waiting_per_address: of one browser, and of one address.
        decode_seconds, decode_bytes: computing time and memory for reading one upload.
        songs_per_visitor: kept; the oldest go first.
        keep_bytes, keep_seconds: of all songs together, and of each.
        scratch_seconds: age at which uploads and half-made files go.
        sign_in_tries, sign_in_window: wrong passwords of one address in so many seconds.
    """

    upload_bytes: int = 100 * MIB
    upload_seconds: float = 600.0
    body_bytes: int = MIB
    body_pause: float = 20.0
    prompt_chars: int = 4000
    lyrics_chars: int = 20000
    waiting: int = 32
    waiting_per_visitor: int = 4
    waiting_per_address: int = 12
    decode_seconds: float = 30.0
    decode_bytes: int = 2048 * MIB
    songs_per_visitor: int = 100
    keep_bytes: int = 5120 * MIB
    keep_seconds: float = 30 * DAY
    scratch_seconds: float = DAY
    sign_in_tries: int = 10
    sign_in_window: float = 60.0
