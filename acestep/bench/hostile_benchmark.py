"""What the page does with hostile input: `python -m acestep.bench.hostile_benchmark`.

Starts the page, sends each case, and prints a table of what happened. A case is safe when
the answer is a result or a clear refusal, nothing outside the page's folders was read or
written, and the page still answers afterwards.
"""

from __future__ import annotations

import gzip
import io
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from acestep.bench._page_caller import Caller, Refused
from acestep.bench._programs import PageProcess, silent_connections
from acestep.gradio_ui.limits import Limits

SECRET = "root:"
MARK = "<img src=x onerror=alert(1)>"


@dataclass
class Stage:
    """A page to attack: its address, a client of its API, and its limits."""

    url: str
    caller: Caller
    limits: Limits

    def get(self, path: str, **headers: str) -> str:
        """Ask for a path exactly as written, and say what came back."""
        host, port = self.url.removeprefix("http://").rstrip("/").split(":")
        lines = [f"GET {path} HTTP/1.1", f"Host: {headers.pop('host', f'{host}:{port}')}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.raw(("\r\n".join([*lines, "Connection: close", "", ""])).encode("latin-1"))

    def raw(self, sent: bytes, wait: float = 10.0) -> str:
        """Send bytes and return status and start of the body."""
        host, port = self.url.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port)), timeout=wait) as connection:
            connection.sendall(sent)
            received = b""
            while len(received) < 100_000 and (part := connection.recv(65536)):
                received += part
        head, _, body = received.partition(b"\r\n\r\n")
        if SECRET.encode() in body:
            raise AssertionError("a file outside was read")
        status = head.split(b"\r\n")[0].decode("latin-1").removeprefix("HTTP/1.1 ")
        text = body[:80].decode("utf-8", "replace").split("\n")[0].strip()
        return f"{status}: {text}" if text else status or "the connection was closed"

    def song(self, **fields: Any) -> str:
        """Ask for a song, and say what came back."""
        given = {"prompt": "x", "duration": 0.5, "steps": 1, "seed": 1, **fields}
        (song, *_) = self.caller.call("v1_generate", **given)
        return f"a song of {song['seconds']:.1f} s titled {song['title']!r}"

    def source(self, content: bytes, name: str = "sound.wav") -> str:
        """Work from an upload, and say what came back."""
        return self.song(task="cover", source=self.caller.upload(content, name))


Case = Callable[[Stage], str]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Put a function into the table."""

    def keep(function: Case) -> Case:
        CASES[name] = function
        return function

    return keep


def wav(samples: Any = None, rate: int = 48000, **settings: Any) -> bytes:
    """A sound file in memory; by default half a second of a tone."""
    if samples is None:
        samples = 0.3 * np.sin(np.arange(rate // 2) / 20).astype("float32")
    target = io.BytesIO()
    soundfile.write(target, samples, rate, **{"format": "WAV", **settings})
    return target.getvalue()


def header(channels: int = 2, rate: int = 48000, bits: int = 16, size: int = 4000) -> bytes:
    """A WAV file whose header says anything, with a little silence behind it."""
    align = min(channels * bits // 8, 65535)
    fmt = struct.pack("<HHIIHH", 1, channels, rate, min(rate * align, 2**32 - 1), align, bits)
    body = b"fmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(size + 36, 2**32 - 1)) + b"WAVE" + body + bytes(4000)


def _add_paths() -> None:
    asked = {
        "path: dots in a song's address": "/songs/../../../../etc/passwd",
        "path: encoded dots": "/songs/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "path: encoded slash in a file's name": "/songs/0123456789abcdef/..%2f..%2frecord.json",
        "path: absolute file of gradio's": "/gradio_api/file=/etc/passwd",
        "path: relative file of gradio's": "/gradio_api/file=../../../../../etc/passwd",
        "path: file scheme": "/gradio_api/file=file:///etc/passwd",
        "path: page's own store": "/gradio_api/file=../songs",
        "path: assets with dots": "/assets/../../../../../../etc/passwd",
        "path: static with encoded dots": "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "path: component file": "/gradio_api/custom_component/x/client/y/../../etc/passwd",
        "path: NUL byte": "/gradio_api/file=/etc/passwd%00.wav",
        "proxy to the cloud's metadata": "/gradio_api/proxy=http://169.254.169.254/latest",
        "proxy through file=": "/gradio_api/file=http://169.254.169.254/latest",
        "monitoring of visitors": "/monitoring/summary",
        "somebody else's song": "/songs/0123456789abcdef/song.flac",
    }
    for name, path in asked.items():
        CASES[name] = partial(_get, path)


def sounds() -> dict[str, tuple[Callable[[], bytes], str]]:
    """Files that are no music, or too much of it: what makes them, and what they are called."""
    rng = np.random.default_rng(1)
    hour = np.zeros((3600 * 8000, 1), "int16")
    return {
        "audio: text called wav": (lambda: b"hello\n" * 500, "a.wav"),
        "audio: page called wav": (lambda: b"<script>alert(1)</script>" * 90, "a.wav"),
        "audio: header claims 4 GiB": (lambda: header(size=2**32 - 1), "a.wav"),
        "audio: 65535 channels": (lambda: header(channels=65535), "a.wav"),
        "audio: no channels": (lambda: header(channels=0), "a.wav"),
        "audio: sample rate of 1 Hz": (lambda: header(rate=1), "a.wav"),
        "audio: sample rate of 4 GHz": (lambda: header(rate=2**32 - 1), "a.wav"),
        "audio: an hour of silence in a small flac": (
            lambda: wav(hour, 8000, format="FLAC", subtype="PCM_16"), "a.flac"),
        "audio: truncated flac": (lambda: wav(format="FLAC", subtype="PCM_16")[:200], "a.flac"),
        "audio: not-a-number samples": (
            lambda: wav(np.full(9000, np.nan, "float32"), subtype="FLOAT"), "a.wav"),
        "audio: no samples": (lambda: wav(np.zeros(0, "float32")), "a.wav"),
        "audio: gzip bomb called mp3": (lambda: gzip.compress(bytes(50_000_000)), "a.mp3"),
        "audio: random bytes called mp3": (lambda: rng.bytes(200_000), "a.mp3"),
        "audio: random bytes called ogg": (lambda: b"OggS" + rng.bytes(100_000), "a.ogg"),
        "audio: a program": (lambda: b"\x7fELF" + bytes(1000), "run.sh"),
        "name: dots and slashes": (wav, "../../../../tmp/acestep-evil.wav"),
        "name: 5000 characters": (wav, "a" * 5000 + ".wav"),
        "name: control characters": (wav, "a\x07b\x1b[31m.wav"),
    }  # fmt: skip


def _get(path: str, stage: Stage) -> str:
    return stage.get(path)


def _song(fields: dict[str, Any], stage: Stage) -> str:
    return stage.song(**fields)


def _source(content: Callable[[], bytes], called: str, stage: Stage) -> str:
    return stage.source(content(), called)


def values() -> dict[str, dict[str, Any]]:
    """Fields of a song that nobody means."""
    return {
        "source: a path of the system": {
            "task": "cover", "source": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}},
        "source: a path with dots": {"task": "cover", "source": {"path": "../../../etc/passwd"}},
        "source: an address": {"task": "cover", "source": {"path": "http://169.254.169.254/a.wav",
            "url": "http://169.254.169.254/a.wav", "meta": {"_type": "gradio.FileData"}}},
        "source: a list": {"task": "cover", "source": ["a", {"b": 1}]},
        "source: somebody else's song": {"task": "cover", "source_song": "0123456789abcdef"},
        "source: a song's id with dots": {"task": "cover", "source_song": "../../../etc"},
        "text: 20001 characters of lyrics": {"lyrics": "la " * 6667},
        "text: NUL and control characters": {"prompt": "pi\x00ano\x1b[2J\x07 \x08soft"},
        "text: HTML in the prompt": {"prompt": f"piano {MARK}"},
        "text: the models' own marks": {"prompt": "<|endoftext|></think><|audio_code_1|>"},
        "text: right-to-left and zero width": {"prompt": "\u202eonaip\u200b\u200d \ufeff"},
        "text: 4000 emoji": {"prompt": "\U0001f3b9" * 4000},
        "text: only blanks": {"prompt": " \n\t "},
        "number: length not a number": {"duration": "nan"},
        "number: length infinite": {"duration": "inf"},
        "number: length 1e308": {"duration": 1e308},
        "number: length negative": {"duration": -5},
        "number: seed of 70 bits": {"seed": 2**70},
        "number: a million songs": {"batch": 10**6},
        "number: a billion steps": {"steps": 10**9},
        "number: a text": {"steps": "DROP TABLE songs"},
        "number: repaint range backwards": {"task": "repaint", "repaint_start": 5, "repaint_end": 1},
        "type: prompt is a list": {"prompt": ["a", ["b"]]},
        "type: prompt is an object": {"prompt": {"__class__": "x"}},
        "task: unknown": {"task": "__import__('os')"},
        "format: a path": {"audio_format": "../../x"},
    }  # fmt: skip


def _add_sounds_and_values() -> None:
    for name, (content, called) in sounds().items():
        CASES[name] = partial(_source, content, called)
    for name, fields in values().items():
        CASES[name] = partial(_song, fields)


_add_paths()
_add_sounds_and_values()


@case("text: 10 MB of lyrics")
def _lyrics(stage: Stage) -> str:
    return stage.song(lyrics="la " * 3_500_000)


@case("text: half a character in JSON")
def _surrogate(stage: Stage) -> str:
    return stage.song(prompt="half a \ud800 character")


@case("body: 100000 nested lists")
def _nested(stage: Stage) -> str:
    body = b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = stage.caller.http.post(
        "/gradio_api/call/v1_songs", content=body, headers={"content-type": "application/json"}
    )
    return f"{answer.status_code} {answer.text[:60]}"


@case("body: no JSON")
def _no_json(stage: Stage) -> str:
    answer = stage.caller.http.post(
        "/gradio_api/queue/join", content=b"\xff\xfe{", headers={"content-type": "application/json"}
    )
    return f"{answer.status_code} {answer.text[:60]}"


@case("body: too few values")
def _too_few(stage: Stage) -> str:
    return str(stage.caller.result("v1_generate", stage.caller.post("v1_generate", {"data": []})))


@case("body: a page's function called by name")
def _private(stage: Stage) -> str:
    return str(stage.caller.result("song_action", stage.caller.post("song_action", {"data": []})))


@case("upload: larger than the limit, and says so")
def _large(stage: Stage) -> str:
    size = stage.limits.upload_bytes + 2**21
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {stage.url[7:].rstrip('/')}\r\n"
    return stage.raw(f"{head}Content-Length: {size}\r\n\r\n".encode())


@case("upload: larger than the limit, in chunks")
def _chunks(stage: Stage) -> str:
    def parts() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
        for _ in range(stage.limits.upload_bytes // 2**20 + 3):
            yield bytes(2**20)
        yield b"\r\n--b--\r\n"

    head = {"content-type": "multipart/form-data; boundary=b"}
    answer = stage.caller.http.post("/gradio_api/upload", content=parts(), headers=head)
    return f"{answer.status_code} {answer.text[:80]}"


@case("upload: length is no number")
def _bad_length(stage: Stage) -> str:
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {stage.url[7:].rstrip('/')}\r\n"
    return stage.raw(f"{head}Content-Length: -1\r\n\r\n".encode())


@case("client: stops in the middle of a body")
def _slow(stage: Stage) -> str:
    head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {stage.url[7:].rstrip('/')}\r\n"
    sent = f"{head}Content-Length: 5000\r\nContent-Type: application/json\r\n\r\n{{"
    started = time.monotonic()
    answer = stage.raw(sent.encode(), stage.limits.body_pause + 20)
    return f"let go after {time.monotonic() - started:.1f} s ({answer})"


@case("client: 200 connections that say nothing")
def _silent(stage: Stage) -> str:
    with silent_connections(stage.url, 200):
        started = time.monotonic()
        answer = stage.get("/theme.css")
        return f"the page answered meanwhile ({answer[:6]}, {time.monotonic() - started:.2f} s)"


@case("client: goes away while its song is made")
def _away(stage: Stage) -> str:
    call = stage.caller.submit("v1_generate", prompt="x", duration=60, steps=100)
    with stage.caller.http.stream("GET", f"/gradio_api/call/v1_generate/{call}"):
        time.sleep(0.3)
    # Nobody reads the answer any more; the next visitor must not wait for it.
    count = stage.caller.call("v1_cancel")
    return f"songs of the client that still wait or run: {count}"


@case("host: another name (DNS rebinding)")
def _host(stage: Stage) -> str:
    return stage.get("/", host="evil.example")


@case("cookie: a path as the visitor's name")
def _cookie(stage: Stage) -> str:
    return stage.get("/songs/0123456789abcdef/song.flac", Cookie="acestep_visitor=../../etc")


@case("cookie: cannot be read")
def _bad_cookie(stage: Stage) -> str:
    return stage.get("/theme.css", Cookie='acestep_visitor="\\"; =;;,\x01')[:40]


@case("origin: a form on another site")
def _origin(stage: Stage) -> str:
    answer = stage.caller.http.post(
        "/gradio_api/call/v1_cancel", json={"data": []}, headers={"origin": "https://evil.example"}
    )
    allowed = answer.headers.get("access-control-allow-origin")
    return f"{answer.status_code}, its script may read the answer: {allowed is not None}"


@case("method: PUT and TRACE")
def _methods(stage: Stage) -> str:
    answers = [stage.caller.http.request(m, "/config").status_code for m in ("PUT", "TRACE")]
    return str(answers)


@case("websocket")
def _websocket(stage: Stage) -> str:
    return stage.get(
        "/queue/join", Upgrade="websocket", Sec_WebSocket_Key="x" * 16, Sec_WebSocket_Version="13"
    )


def attack(stage: Stage, name: str) -> tuple[bool, str]:
    """Run one case: whether it is safe, and what happened."""
    try:
        told = CASES[name](stage)
    except Refused as answer:
        told = f"refused: {answer}"
    except httpx.HTTPError as error:
        told = f"the connection was closed ({type(error).__name__})"
    except AssertionError as error:
        return False, str(error)
    alive = stage.caller.http.get("/theme.css").status_code == 200
    unclear = "something went wrong inside" in told or "Traceback" in told
    return alive and not unclear and " 500" not in told[:12], told


def main() -> int:
    """Start the page, run every case, print the table."""
    with tempfile.TemporaryDirectory() as folder, PageProcess(Path(folder), "--enable-api") as page:
        stage = Stage(page.url, Caller(page.url), Limits())
        bad, before = 0, page.memory()
        for number, name in enumerate(CASES, start=1):
            safe, told = attack(replace(stage), name)
            bad += not safe
            shown = " ".join(told.split())[:150]
            print(f"| {number} | {name} | {'safe' if safe else 'UNSAFE'} | {shown} |", flush=True)  # noqa: T201
        stage.caller.close()
        print(f"{len(CASES)} cases, {bad} unsafe; server memory {before:.0f} MiB before, "  # noqa: T201
              f"{page.memory():.0f} MiB after")  # fmt: skip
        outside = [p for p in (Path("/tmp/acestep-evil.wav"),) if p.exists()]
        print(f"files written outside: {outside or 'none'}")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
