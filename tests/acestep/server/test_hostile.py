"""Thirty and more inputs that nobody sends by accident: what happens with each."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from server_support import KEY, SONG, Server

from acestep.bench import hostile_benchmark as page
from acestep.bench import server_hostile_benchmark as attacks
from acestep.bench._programs import free_port
from acestep.bench._server_stage import Stage
from acestep.server import serving
from acestep.server.app import create_app
from acestep.server.guard import Guard
from acestep.server.options import MIB, Limits, ServerOptions

Make = Callable[..., Server]

PATHS = [
    "../tasks.db", "..%2ftasks.db", "/etc/passwd", "file:///etc/passwd", "tasks.db", "",
    "a" * 5000, "\x00", "results/../../tasks.db", "\\\\host\\share", ".part-0", "~/x.mp3",
    f"{'a' * 48}.mp3/../../tasks.db", f"{'0' * 48}.mp3",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_reads_a_file(idle: Server, path: str) -> None:
    answer = idle.client.get("/v1/audio", params={"path": path})
    assert (answer.status_code, set(answer.json())) == (404, {"detail"})
    named = idle.client.post(
        "/release_task", json={**SONG, "task_type": "cover", "src_audio_path": path or "."}
    )
    assert named.status_code == 400
    assert "passwd" not in named.text


BODIES = {
    "no json": b"{",
    "a list": b"[]",
    "a number": b"5",
    "nothing, as json": b"",
    "NaN": b'{"prompt": "x", "shift": NaN}',
    "Infinity": b'{"prompt": "x", "duration": Infinity}',
    "a number of 5,000 digits": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "nested 100,000 deep": b'{"metas": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects nested deep": b'{"metas": ' + b'{"a": ' * 20_000 + b"1" + b"}" * 20_000 + b"}",
    "not utf-8": b'{"prompt": "\xff\xfe"}',
    "a NUL in the prompt": b'{"prompt": "a\\u0000b"}',
    "a prompt too long": json.dumps({"prompt": "x" * 5000}).encode(),
    "lyrics too long": json.dumps({"prompt": "x", "lyrics": "la " * 10_000}).encode(),
    "objects for words": b'{"prompt": {"a": 1}}',
    "a list for a number": b'{"prompt": "x", "bpm": [1, 2]}',
    "a million songs": b'{"prompt": "x", "batch_size": 1000000}',
    "a million steps": b'{"prompt": "x", "inference_steps": 1000000}',
    "years of music": b'{"prompt": "x", "duration": 1e9}',
    "a wide list of times": json.dumps({"prompt": "x", "timesteps": [0.5] * 5000}).encode(),
    "a path for a model": b'{"prompt": "x", "model": "../../etc"}',
    "a format that is a path": b'{"prompt": "x", "audio_format": "../../x"}',
}


@pytest.mark.parametrize("name", BODIES)
def test_no_body_is_more_than_refused(idle: Server, name: str) -> None:
    answer = idle.client.post(
        "/release_task", content=BODIES[name], headers={"content-type": "application/json"}
    )
    assert (answer.status_code, set(answer.json())) == (400, {"detail"}), answer.text
    assert len(answer.json()["detail"]) < 400
    assert "Traceback" not in answer.text
    assert idle.store.counts()["queued"] == 0


def test_half_characters_are_written_as_question_marks(idle: Server) -> None:
    answer = idle.client.post(
        "/release_task", content=b'{"prompt": "x \\ud800 y", "colour\\udfff": 1}',
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    task = idle.store.get(answer.json()["data"]["task_id"])
    assert task is not None
    assert task.asked["params"]["caption"] == "x ? y"


def test_injections_stay_text(idle: Server) -> None:
    nasty = "'; DROP TABLE tasks; --"
    task = idle.release(prompt=nasty, lyrics="\r\nset-cookie: a=b\r\n\r\n<script>")
    found = idle.store.get(task)
    assert found is not None
    assert found.asked["params"]["caption"] == nasty
    assert idle.item(nasty)["status"] == 2
    answer = idle.client.get("/v1/audio", params={"path": "x\r\nset-cookie: a=b"})
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("kind", "status"),
    [("text/plain", 415), ("application/xml", 415), ("multipart/form-data", 400),
     ("multipart/form-data; boundary=x", 400), ("application/vnd.api+json", 200)],
)  # fmt: skip
def test_kinds_of_bodies(idle: Server, kind: str, status: int) -> None:
    answer = idle.client.post(
        "/release_task", content=json.dumps(SONG), headers={"content-type": kind}
    )
    assert answer.status_code == status, answer.text


def test_too_much_of_everything(make_server: Make) -> None:
    small = make_server(
        working=False, limits=Limits(body_bytes=2000, upload_bytes=5000, chat_bytes=3000)
    )
    client = small.client
    assert client.post("/release_task", json={"prompt": "x" * 3000}).status_code == 413

    def pieces() -> Any:
        for _ in range(100):
            yield b"x" * 100

    chunked = client.post("/release_task", content=pieces())
    assert chunked.status_code == 413
    file = {"src_audio": ("x.wav", bytes(20_000))}
    assert client.post("/release_task", data={"prompt": "x"}, files=file).status_code == 413
    file = {"src_audio": ("x.wav", bytes(6000))}
    answer = client.post("/release_task", data={**SONG, "task_type": "cover"}, files=file)
    assert answer.status_code == 400
    assert client.post("/v1/chat/completions", json={"messages": "x" * 4000}).status_code == 413
    many = {f"field{n}": "x" for n in range(500)}
    assert client.post("/release_task", data=many).status_code in (400, 413)
    headers = {f"x-{n}": "y" for n in range(200)}
    assert client.get("/health", headers=headers).status_code == 431
    assert client.get("/health", headers={"x": "y" * 40_000}).status_code == 431
    length = client.post("/release_task", content=b"{}", headers={"content-length": "9" * 30})
    assert length.status_code == 413
    assert list(small.store.uploads.iterdir()) == []


def sounds() -> dict[str, bytes]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("song.wav", bytes(4 * MIB))
    # A header that claims hours of samples.
    claims = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00\x01\x00\x02\x00\x80\xbb\x00\x00"
    claims += b"\x00\xee\x02\x00\x04\x00\x10\x00data\xff\xff\xff\x7f" + bytes(100)
    return {
        "a zip bomb": packed.getvalue(),
        "a header alone": b"RIFF\x24\x00\x00\x00WAVE",
        "a header that lies": claims,
        "a playlist": b"#EXTM3U\nfile:///etc/passwd\n",
        "a web page": b"<html><script>alert(1)</script>",
        "nothing": b"",
    }


@pytest.mark.parametrize("name", sounds())
def test_no_sound_is_more_than_refused(idle: Server, name: str) -> None:
    file = {"src_audio": ("../../evil.wav", sounds()[name])}
    answer = idle.client.post("/release_task", data={**SONG, "task_type": "cover"}, files=file)
    assert (answer.status_code, set(answer.json())) == (400, {"detail"}), answer.text
    assert "/" not in answer.json()["detail"].replace(" / ", "")
    assert list(idle.store.uploads.iterdir()) == []
    assert idle.store.counts()["queued"] == 0


def test_names_origins_and_methods(make_server: Make) -> None:
    plain, friendly = (
        make_server(working=False),
        make_server(working=False, origins=("https://friend.example",)),
    )
    rebound = plain.client.get("/health", headers={"host": "evil.example"})
    assert rebound.status_code == 421
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999"):
        answer = plain.client.post("/release_task", json=SONG, headers={"origin": origin})
        assert answer.status_code == 403, origin
        assert "access-control-allow-origin" not in answer.headers
    own = {"origin": "http://127.0.0.1:8001"}
    assert plain.client.post("/release_task", json=SONG, headers=own).status_code == 200
    friend = {"origin": "https://friend.example"}
    answer = friendly.client.post("/release_task", json=SONG, headers=friend)
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    asks = {**friend, "access-control-request-method": "POST"}
    assert friendly.client.options("/release_task", headers=asks).status_code == 200
    assert plain.client.get("/release_task").status_code == 405
    assert plain.client.request("TRACE", "/health").status_code == 405
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//evil", "/data/tasks.db"):
        assert plain.client.get(path).status_code == 404


def test_the_log_tells_no_secrets(make_server: Make, caplog: pytest.LogCaptureFixture) -> None:
    locked = make_server(working=False, api_key=KEY)
    headers = {"authorization": f"Bearer {KEY}"}
    with caplog.at_level(logging.INFO, logger="acestep"):
        locked.client.post(
            "/release_task?token=secret", json={"prompt": "my words"}, headers=headers
        )
        locked.client.get("/v1/audio?path=secret-name")
    lines = [
        json.loads(record.getMessage())
        for record in caplog.records
        if record.name.endswith("access")
    ]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/release_task", 200), ("/v1/audio", 404),
    ]  # fmt: skip
    assert set(lines[0]) == {
        "id", "method", "route", "status", "ms", "bytes_in", "bytes_out", "client",
    }  # fmt: skip
    for secret in (KEY, "my words", "secret"):
        assert secret not in caplog.text


def test_what_breaks_inside_stays_inside(
    idle: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("the secret of /root/x")

    monkeypatch.setattr(idle.store, "counts", broken)
    answer = idle.client.get("/v1/stats")
    assert (answer.status_code, set(answer.json())) == (500, {"detail"})
    assert "secret" not in answer.text
    number = answer.json()["detail"].rsplit(" ", 1)[1]
    assert any(number in record.getMessage() for record in caplog.records)


def test_a_slow_body_is_not_waited_for() -> None:
    answers: list[Any] = []

    async def run() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            while (await receive()).get("more_body"):
                pass

        async def receive() -> Any:
            if not answers:
                answers.append(None)
                return {"type": "http.request", "body": b"x", "more_body": True}
            await asyncio.sleep(30)
            return {}

        async def send(message: Any) -> None:
            answers.append(message)

        guard = Guard(app, ServerOptions(limits=Limits(body_pause=0.05)), lambda *_: None)
        scope = {"type": "http", "method": "POST", "path": "/", "client": ("1.2.3.4", 5),
                 "headers": [(b"host", b"127.0.0.1")]}  # fmt: skip
        await guard(scope, receive, send)
        await guard({"type": "websocket", "headers": []}, receive, send)

    asyncio.run(run())
    assert answers[1]["status"] == 408
    assert answers[-1]["type"] == "websocket.close"


@pytest.fixture
def stage(make_server: Make) -> Iterator[Stage]:
    """A service behind a socket of its own, to attack."""
    limits = Limits(body_pause=1.0, head_time=1.0, heartbeat=0.05)
    server = make_server(api_key=attacks.KEY, limits=limits)
    options = server.service.options
    app = create_app(options, server.service)
    web = serving._Server(serving._config(app, options))
    where = serving.listening("127.0.0.1", port := free_port())
    thread = threading.Thread(target=lambda: asyncio.run(web.serve([where])))
    thread.start()
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(
        base_url=url, headers={"authorization": f"Bearer {attacks.KEY}"}, timeout=60
    ) as client:
        yield Stage(url, client, limits.body_pause)
    web.should_exit = True
    thread.join()
    where.close()


# Of a form that has no end Starlette leaves a file, which is closed when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_the_benchmark_sends_is_safe(stage: Stage) -> None:
    """All but the page's inputs, which take their time and are the page's own tests too."""
    others = {*page.sounds(), *page.values()}
    for name in (case for case in attacks.CASES if case not in others):
        safe, told = attacks.attack(stage, name)
        assert safe, f"{name}: {told}"
