"""What the HTTP API does with hostile input: `python -m acestep.bench.server_hostile_benchmark`.

Starts the service with a key, sends what the page is attacked with and as much again that is
HTTP's, and prints a table of what happened. A case is safe when the answer is a result or a clear
refusal, nothing outside was read or written, and the service still answers.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from acestep.bench import hostile_benchmark as page
from acestep.bench._programs import ServerProcess, silent_connections
from acestep.bench._server_stage import KEY, SONG, Stage, shown

_SILENT = 200


Case = Callable[[Stage], str]
CASES: dict[str, Case] = {}


def _source(content: Callable[[], bytes], called: str, stage: Stage) -> str:
    return stage.source(content(), called)


def _body(content: Callable[[], bytes], stage: Stage) -> str:
    return stage.post(content())


def _song(fields: dict[str, Any], stage: Stage) -> str:
    return stage.song(**fields)


def _add_the_pages() -> None:
    for name, (content, called) in page.sounds().items():
        CASES[name] = partial(_source, content, called)
    for name, fields in page.values().items():
        CASES[name] = partial(_song, fields)


def _add_paths() -> None:
    known = "0" * 48
    asked = {
        "audio: dots": "../../../../etc/passwd",
        "audio: encoded dots": "..%2f..%2ftasks.db",
        "audio: an absolute path": "/etc/passwd",
        "audio: a file's address": "file:///etc/passwd",
        "audio: the database": "tasks.db",
        "audio: dots behind a name": f"{known}.mp3/../../tasks.db",
        "audio: NUL": f"{known}.mp3%00.db",
        "audio: another machine's share": "\\\\host\\share\\x.mp3",
        "audio: a name that is guessed": f"{known}.mp3",
        "audio: two paths": f"{known}.mp3&path=/etc/passwd",
        "audio: an address in the address": "%2Fv1%2Faudio%3Fpath%3D..%2F..%2Ftasks.db",
        "audio: a new line and a header": "x%0d%0aset-cookie:%20a=b",
    }
    for name, path in asked.items():
        CASES[name] = partial(Stage.get, path=f"/v1/audio?path={path}")
    CASES["address: dots"] = partial(Stage.get, path="/../../../../etc/passwd")
    CASES["address: encoded dots"] = partial(Stage.get, path="/v1/%2e%2e/%2e%2e/etc/passwd")
    CASES["address: of another host"] = partial(Stage.get, path="http://169.254.169.254/latest")


def _add_bodies() -> None:
    deep = 100_000
    bodies: dict[str, Callable[[], bytes]] = {
        "body: 20 MB of JSON": lambda: b'{"prompt": "' + b"x" * 20_000_000 + b'"}',
        "body: 100,000 nested lists": lambda: b'{"metas": ' + b"[" * deep + b"]" * deep + b"}",
        "body: a number of 5,000 digits": lambda: b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        "body: NaN": lambda: b'{"prompt": "x", "shift": NaN}',
        "body: not UTF-8": lambda: b'{"prompt": "\xff\xfe"}',
        "body: half a character": lambda: (
            b'{"prompt": "a \\ud800 b", "duration": 0.5, "steps": 1, "batch_size": 1}'
        ),
        "body: a list": lambda: b"[1, 2]",
        "body: nothing": lambda: b"",
        "body: bytes packed by gzip": lambda: gzip.compress(b'{"prompt": "x"}'),
        "body: 60,000 names": lambda: json.dumps({f"n{n}": 1 for n in range(60_000)}).encode(),
    }
    for name, body in bodies.items():
        CASES[name] = partial(_body, body)
    values: dict[str, dict[str, Any]] = {
        "value: a path for a checkpoint": {"model": "../../etc"},
        "value: a path for a language model": {"lm_model_path": "/etc", "thinking": True},
        "value: an engine that is none": {"lm_backend": "; rm -rf /", "thinking": True},
        "value: 5,000 times": {"timesteps": [0.5] * 5000},
        "value: an object for metadata": {"metas": {"bpm": {"$gt": 0}}},
        "value: numbers as booleans": {"thinking": 7, "batch_size": True},
        "value: an injection": {"prompt": "'; DROP TABLE tasks; --"},
    }
    for name, fields in values.items():
        CASES[name] = partial(_song, fields)


def _add_chats() -> None:
    chats: dict[str, Any] = {
        "chat: no messages": {"messages": []},
        "chat: messages that are none": {"messages": [5, None]},
        "chat: 10,000 messages": {"messages": [{"role": "system", "content": "x"}] * 10_000},
        "chat: audio that is not base64": {"messages": [{"role": "user", "content": [
            {"type": "input_audio", "input_audio": {"data": "%%%"}}]}]},
        "chat: an image's address": {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]},
    }  # fmt: skip
    for name, body in chats.items():
        CASES[name] = partial(Stage.post, body=body, path="/v1/chat/completions")
    asked = {
        "tasks: an injection": {"task_id_list": ["' OR 1=1 --"]},
        "tasks: 1,001 at once": {"task_id_list": ["x"] * 1001},
        "tasks: JSON in the text that is none": {"task_id_list": "[" * 5000},
    }
    for name, given in asked.items():
        CASES[name] = partial(Stage.post, body=given, path="/query_result")
    CASES["cancel: somebody's task"] = partial(
        Stage.post, body={"task_id": "0" * 32}, path="/cancel_task"
    )
    CASES["planner: parameters that are none"] = partial(
        Stage.post, body={"prompt": "x", "param_obj": "{" * 1000}, path="/format_input"
    )


def _zip_bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("song.wav", bytes(50_000_000))
    return packed.getvalue()


def case(name: str) -> Callable[[Case], Case]:
    """Put a function into the table."""

    def keep(function: Case) -> Case:
        CASES[name] = function
        return function

    return keep


_add_the_pages()
_add_paths()
_add_bodies()
_add_chats()


@case("upload: a zip bomb")
def _bomb(stage: Stage) -> str:
    return stage.source(_zip_bomb(), "song.wav")


@case("chat: a zip bomb as audio")
def _bomb_in_a_chat(stage: Stage) -> str:
    sound = {"data": base64.b64encode(_zip_bomb()).decode(), "format": "mp3"}
    parts = [
        {"type": "text", "text": "<prompt>x</prompt>"},
        {"type": "input_audio", "input_audio": sound},
    ]
    body = {"messages": [{"role": "user", "content": parts}]}
    return stage.post(body, path="/v1/chat/completions")


@case("upload: a playlist of the system's files")
def _playlist(stage: Stage) -> str:
    return stage.source(b"#EXTM3U\nfile:///etc/passwd\n" * 100, "song.m3u8")


@case("upload: ten files at once")
def _many_files(stage: Stage) -> str:
    files = [("src_audio", ("a.wav", page.wav())) for _ in range(10)]
    return stage.post(data={"prompt": "x"}, files=files)


@case("upload: claims 10 GiB")
def _large(stage: Stage) -> str:
    kind = "multipart/form-data; boundary=b"
    return stage.raw(stage.head(Content_Type=kind, Content_Length=10 * 2**30))


@case("form: 500 fields")
def _fields(stage: Stage) -> str:
    return stage.post(data={f"field{n}": "x" for n in range(500)})


@case("form: its end is missing")
def _endless(stage: Stage) -> str:
    head = {"content-type": "multipart/form-data; boundary=b"}
    content = b'--b\r\nContent-Disposition: form-data; name="src_audio"; filename="x"\r\n\r\nRIFF'
    return stage.post(content, headers=head)


@case("form: a header of 1 MB in a part")
def _part_header(stage: Stage) -> str:
    head = {"content-type": "multipart/form-data; boundary=b"}
    content = b"--b\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\nx\r\n--b--\r\n"
    return stage.post(content, headers=head)


@case("body: 3 MB in chunks that name no length")
def _chunks(stage: Stage) -> str:
    def parts() -> Iterator[bytes]:
        for _ in range(300):
            yield b" " * 10_000

    return stage.post(parts())


@case("body: stops in the middle")
def _slow_body(stage: Stage) -> str:
    started = time.monotonic()
    sent = stage.head(Content_Type="application/json", Content_Length=5000) + "{"
    answer = stage.raw(sent, stage.body_pause + 20)
    return f"let go after {time.monotonic() - started:.0f} s ({answer})"


@case("head: stops in the middle")
def _slow_head(stage: Stage) -> str:
    started = time.monotonic()
    answer = stage.raw("GET /health HTTP/1.1\r\nX-Slow: ", stage.body_pause + 20)
    return f"let go after {time.monotonic() - started:.0f} s ({answer})"


@case("head: a length and chunks at once")
def _smuggled(stage: Stage) -> str:
    head = stage.head(Content_Length=4, Transfer_Encoding="chunked")
    return stage.raw(f"{head}0\r\n\r\nGET /metrics HTTP/1.1\r\n{stage.host}\r\n\r\n")


@case("head: a length below zero")
def _negative(stage: Stage) -> str:
    return stage.raw(stage.head(Content_Length=-1))


@case("head: 200 headers")
def _headers(stage: Stage) -> str:
    return stage.get("/health", *(f"X-{n}: y" for n in range(200)))


@case("head: one header of 50 kB")
def _long_header(stage: Stage) -> str:
    return stage.get("/health", f"X-Long: {'y' * 50_000}")


@case("head: an address of 100 kB")
def _long_address(stage: Stage) -> str:
    return stage.get(f"/v1/audio?path={'x' * 100_000}")


@case("head: no HTTP at all")
def _nonsense(stage: Stage) -> str:
    return stage.raw("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")


@case("head: an upgrade to a websocket")
def _websocket(stage: Stage) -> str:
    return stage.get("/v1/stats", "Upgrade: websocket", f"Sec-WebSocket-Key: {'x' * 16}",
                     "Sec-WebSocket-Version: 13")  # fmt: skip


@case("head: TRACE and PUT")
def _methods(stage: Stage) -> str:
    return str([stage.http.request(m, "/release_task").status_code for m in ("TRACE", "PUT")])


@case("host: another name (DNS rebinding)")
def _rebound(stage: Stage) -> str:
    return stage.get("/v1/stats", "Host: evil.example")


@case("origin: a script of another site")
def _origin(stage: Stage) -> str:
    head = {"origin": "https://evil.example"}
    answer = stage.http.post("/release_task", json=SONG, headers=head)
    may_read = "access-control-allow-origin" in answer.headers
    return f"{answer.status_code}, its script may read the answer: {may_read}"


@case("key: none")
def _no_key(stage: Stage) -> str:
    return shown(*_answer(httpx.post(f"{stage.url}/release_task", json=SONG)))


@case("key: in the address")
def _key_in_address(stage: Stage) -> str:
    return stage.get(f"/v1/stats?ai_token={KEY.replace(' ', '%20')}")


@case("key: guessed 30 times")
def _guessed(stage: Stage) -> str:
    answers = []
    with httpx.Client(base_url=stage.url) as stranger:
        for number in range(30):
            head = {"authorization": f"Bearer {number}"}
            answers.append(stranger.get("/v1/stats", headers=head).status_code)
    kinds = {status: answers.count(status) for status in sorted(set(answers))}
    return f"{kinds}; with the key: {stage.http.get('/v1/stats').status_code}"


@case(f"client: {_SILENT} connections that say nothing")
def _silent(stage: Stage) -> str:
    with silent_connections(stage.url, _SILENT):
        started = time.monotonic()
        answer = stage.get("/health")
        return f"it answered meanwhile ({answer[:3]}, {time.monotonic() - started:.2f} s)"


@case("client: goes away while its song is made")
def _away(stage: Stage) -> str:
    asked = {"messages": [{"role": "user", "content": "<prompt>x</prompt>"}], "stream": True,
             "duration": 60, "steps": 1000, "cancel_on_disconnect": True}  # fmt: skip
    with stage.http.stream("POST", "/v1/chat/completions", json=asked) as stream:
        next(stream.iter_lines())
    began = time.monotonic()
    while stage.http.get("/v1/stats").json()["data"]["jobs"]["cancelled"] == 0:
        assert time.monotonic() - began < 60, "it goes on for nobody"
        time.sleep(0.1)
    return f"its song was given up after {time.monotonic() - began:.1f} s"


def _answer(answer: httpx.Response) -> tuple[str, str]:
    return str(answer.status_code), answer.text


def attack(stage: Stage, name: str) -> tuple[bool, str]:
    """Run one case: whether it is safe, and what happened."""
    try:
        told = CASES[name](stage)
    except httpx.HTTPError as error:
        told = f"the connection was closed ({type(error).__name__})"
    except AssertionError as error:
        return False, str(error)
    unclear = any(words in told for words in ("something went wrong", "Traceback", "(see log)"))
    return stage.alive() and not unclear and not told.startswith("5"), told


def main() -> int:
    """Start the service, run every case, print the table."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with ServerProcess(data, "--api-key", KEY) as server:
            head = {"authorization": f"Bearer {KEY}"}
            stage = Stage(
                server.url, httpx.Client(base_url=server.url, headers=head, timeout=120), 20
            )
            bad, before = 0, server.memory()
            _say("| | what was sent | | what happened |\n| --- | --- | --- | --- |")
            for number, name in enumerate(CASES, start=1):
                safe, told = attack(stage, name)
                bad += not safe
                told = " ".join(told.split()).replace("|", "\\|")[:130]
                _say(f"| {number} | {name} | {'safe' if safe else 'UNSAFE'} | {told} |")
            stage.http.close()
            memory = server.memory()
        left = [path.name for path in (data / "uploads").iterdir()]
        outside = [path for path in (Path("/tmp/acestep-evil.wav"),) if path.exists()]
    _say(f"{len(CASES)} cases, {bad} unsafe; memory {before:.0f} MiB before, {memory:.0f} after; "
         f"uploads left: {left or 'none'}; files written outside: {outside or 'none'}")  # fmt: skip
    return 1 if bad or left or outside else 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
