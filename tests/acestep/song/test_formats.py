"""Tests of which kinds of file there are, and of what is refused before any work."""

from __future__ import annotations

import pytest

from acestep.errors import RequestError
from acestep.song import formats


def test_defaults() -> None:
    bits = {kind: formats.encoding(kind).bits for kind in formats.FORMATS}
    assert bits == {"flac": 24, "wav": 16, "mp3": 0, "ogg": 0, "opus": 0, "m4a": 0, "aac": 0}
    assert formats.encoding("wav", 32).subtype == "FLOAT"
    assert formats.encoding("mp3", bitrate=320).bitrate == 320


@pytest.mark.parametrize(
    ("kind", "bits", "rate", "expected"),
    [
        ("wma", None, None, "unknown audio format 'wma'; choose from flac, wav"),
        ("flac", 32, None, "flac cannot have a bit depth of 32; choose 16 or 24"),
        ("wav", 8, None, "wav cannot have a bit depth of 8; choose 16 or 24 or 32"),
        ("mp3", 24, None, "mp3 cannot have a bit depth of 24; leave it out"),
        ("flac", None, 320, "flac has no bit rate to choose; leave it out, or choose mp3"),
        ("ogg", None, 128, "ogg has no bit rate to choose"),
        ("mp3", None, 321, "mp3 has no bit rate of 321 kbit/s; choose from 32, 40"),
        ("opus", None, 8, "opus has no bit rate of 8 kbit/s; choose 16 to 510"),
        ("m4a", None, 999, "m4a has no bit rate of 999 kbit/s; choose 32 to 320"),
    ],
)
def test_what_no_file_is_like(kind: str, bits: int | None, rate: int | None, expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        formats.encoding(kind, bits, rate)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "has_pyav", lambda: False)
    with pytest.raises(RequestError, match=r"m4a files need PyAV; .*'acestep\[aac\]', or choose "):
        formats.encoding("m4a")
