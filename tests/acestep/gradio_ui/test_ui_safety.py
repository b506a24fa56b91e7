"""Who is let in, what is served, and what is taken from strangers."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep.errors import RequestError
from acestep.gradio_ui import pictures, safety, uploads
from acestep.gradio_ui.limits import Limits


def test_secrets_are_compared_whole() -> None:
    assert safety.same("geheim ü", "geheim ü")
    assert not safety.same("geheim", "geheim ü")
    assert not safety.same(None, "x")


def test_too_many_wrong_passwords_close_the_door(caplog: pytest.LogCaptureFixture) -> None:
    check = safety.Credentials("anna", "open sesame", Limits(sign_in_tries=3, sign_in_window=0.2))
    assert check("anna", "open sesame")
    with caplog.at_level(logging.WARNING, "acestep.page"):
        assert not check("anna", "wrong")
        assert not check("bert", "open sesame")
        assert not check("", "")
        assert not check("anna", "open sesame")
    assert "sesame" not in caplog.text
    assert "anna" not in caplog.text
    import time

    time.sleep(0.25)
    assert check("anna", "open sesame")


def test_a_visitor_is_a_digest() -> None:
    name = safety.visitor({safety.COOKIE: "../../etc"}, "")
    assert len(name) == 32
    assert name == safety.visitor({safety.COOKIE: "../../etc"}, "other")
    assert safety.visitor({}, "one") != safety.visitor({}, "two")


def test_keys_are_read_from_either_header() -> None:
    assert safety.api_key({"x-api-key": "k"}) == "k"
    assert safety.api_key({"authorization": "Bearer k "}) == "k"
    assert safety.api_key({"authorization": "Basic k"}) == ""
    assert safety.api_key({}) == ""


def test_only_what_the_page_needs_is_served() -> None:
    for path in ("/", "/config", "/gradio_api/queue/join", "/gradio_api/file=/x", "/songs/a/b"):
        assert safety.served(path), path
    for path in ("/monitoring", "/gradio_api/proxy=http://x", "/gradio_api/vibe-edit/", "/docs",
                 "/gradio_api/process_recording", "/openapi.json", "/gradio_api/run/x"):  # fmt: skip
        assert not safety.served(path), path


async def _ask(
    guard: safety.Guard, path: str = "/config", headers: dict[str, str] | None = None,
    parts: tuple[bytes, ...] = (b"",), pause: float = 0.0, method: str = "GET", kind: str = "http",
) -> list[dict[str, Any]]:  # fmt: skip
    sent: list[dict[str, Any]] = []
    left = list(parts)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    given = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    scope = {"type": kind, "path": path, "method": method, "headers": given, "scheme": "http"}
    await guard(scope, receive, send)
    return sent


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["type"].encode()})


async def _refusing(scope: Any, receive: Any, send: Any) -> None:
    """As who reads an upload, whose sender may be gone, and has an error of its own."""
    await receive()
    await receive()
    raise ConnectionError


def ask(*given: Any, **named: Any) -> list[dict[str, Any]]:
    return asyncio.run(_ask(*given, **named))


def test_the_guard_refuses_and_adds_headers() -> None:
    guard = safety.Guard(_echo, Limits(body_bytes=10, body_pause=0.05), ("127.0.0.1",))
    host = {"host": "127.0.0.1:7860"}
    head, _ = ask(guard, "/", host)
    sent = dict(head["headers"])
    assert b"default-src 'self'" in sent[b"content-security-policy"]
    assert b"HttpOnly" in sent[b"set-cookie"]
    assert b"SameSite=Lax" in sent[b"set-cookie"]
    again, _ = ask(guard, "/", {**host, "cookie": f"{safety.COOKIE}=x"})
    assert b"set-cookie" not in dict(again["headers"])
    assert ask(guard, "/", {"host": "evil.example"})[0]["status"] == 421
    assert ask(guard, "/docs", host)[0]["status"] == 404
    assert ask(guard, headers={**host, "content-length": "-1"})[0]["status"] == 400
    assert ask(guard, headers={**host, "content-length": "11"})[0]["status"] == 413
    assert ask(guard, headers=host, parts=(b"123456", b"123456"))[0]["status"] == 413
    head, said = ask(guard, headers=host, parts=(b"1", b"2"), pause=0.2)
    assert said["body"] == b"http.disconnect"
    left = safety.Guard(_refusing, Limits(body_pause=0.05))
    assert ask(left, headers=host, parts=(b"1", b"2"), pause=0.2)[0]["status"] == 408
    with pytest.raises(ConnectionError):
        ask(left, headers=host, parts=(b"1", b"2"))
    # What may still come must not be taken for the next request.
    assert dict(head["headers"])[b"connection"] == b"close"
    assert b"connection" not in sent
    assert ask(guard, kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_only_loopback_is_asked_for_its_name() -> None:
    assert "localhost" in safety.loopback_names("127.0.0.1")
    assert safety.loopback_names("0.0.0.0") == ()


def tone(seconds: float = 0.5, rate: int = 44100, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def test_an_upload_becomes_plain_samples(tmp_path: Path) -> None:
    source = tmp_path / "tone.flac"
    soundfile.write(source, tone(), 44100)
    plain = uploads.decoded(source, tmp_path / "plain.wav", Limits())
    info = soundfile.info(plain)
    assert (info.samplerate, info.channels) == (48000, 2)
    assert info.duration == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "content", "limits", "words"),
    [
        ("a.txt", b"x", Limits(), "unknown ending"),
        ("a.wav", b"x" * 99, Limits(upload_bytes=50), "the most is"),
        ("a.wav", b"RIFF nonsense" * 99, Limits(), "not readable as audio"),
    ],
)
def test_what_is_no_audio_is_refused(
    tmp_path: Path, name: str, content: bytes, limits: Limits, words: str
) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    with pytest.raises(RequestError, match=words):
        uploads.decoded(source, tmp_path / "plain.wav", limits)


def test_a_decoder_that_takes_too_much_is_ended(tmp_path: Path) -> None:
    source = tmp_path / "tone.wav"
    soundfile.write(source, tone(), 44100)
    with pytest.raises(RequestError, match="too much time or memory"):
        uploads.decoded(source, tmp_path / "plain.wav", Limits(decode_bytes=64 * 2**20))


def test_files_outside_are_not_uploads(tmp_path: Path) -> None:
    inside = tmp_path / "uploads"
    inside.mkdir()
    (inside / "a.wav").write_bytes(b"x")
    (tmp_path / "b.wav").write_bytes(b"x")
    (inside / "link.wav").symlink_to(tmp_path / "b.wav")
    assert uploads.within(inside / "a.wav", inside).name == "a.wav"
    for path in (tmp_path / "b.wav", inside / "link.wav", inside / "../b.wav", "\x00", inside):
        with pytest.raises(RequestError, match="not uploaded here"):
            uploads.within(path, inside)


def test_old_uploads_go(tmp_path: Path) -> None:
    old, new = tmp_path / "one" / "a.wav", tmp_path / "two" / "b.wav"
    for path in (old, new):
        path.parent.mkdir()
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(old.parent, (0, 0))
    uploads.clean(tmp_path, Limits())
    uploads.clean(tmp_path, Limits())
    assert new.exists()
    assert not old.exists()


def test_pictures_show_the_sound() -> None:
    rate = 48000
    low, high = (np.sin(2 * np.pi * f * np.arange(rate) / rate) for f in (110, 7040))
    silent = np.zeros(rate)
    audio = np.stack([np.concatenate([low, silent, high])] * 2).astype(np.float32)
    heights = pictures.peaks(audio, 3)
    assert heights[0] == pytest.approx(1, abs=0.01)
    assert heights[1] == pytest.approx(0, abs=0.01)
    image = np.asarray(pictures.spectrogram(audio, rate)).astype(int).sum(axis=2)
    height, width = image.shape
    first, last = image[:, : width // 4].mean(axis=1), image[:, -width // 4 :].mean(axis=1)
    assert first.argmax() > height / 2 > last.argmax()
    assert image[:, width // 2].max() < image.max() / 3
    assert len(pictures.peaks(audio[:, :5])) == pictures.PEAKS
    pictures.spectrogram(audio[:, :100], rate)
