"""The page over HTTP: its API with every kind of key, sign-in, songs' addresses, hostile input."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio.networking
import httpx
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from acestep.acestep_v15_pipeline import main
from acestep.bench import hostile_benchmark as hostile
from acestep.bench._page_caller import Caller, Refused
from acestep.errors import RequestError
from acestep.gradio_ui.interfaces import server
from acestep.gradio_ui.limits import Limits

# Gradio sets an option of pandas that pandas has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*")

SHORT: dict[str, Any] = {"prompt": "warm piano", "duration": 1, "steps": 2, "seed": 3}
SMALL = Limits(upload_bytes=2**21, body_pause=0.5)


@pytest.fixture(scope="module")
def page(serve_page: Callable[..., Any]) -> Iterator[Any]:
    """A page whose API needs no key, with small limits."""
    with serve_page(SMALL, enable_api=True) as served:
        yield served


def test_gradio_client_makes_a_song_and_covers_it(page: Any, tmp_path: Path) -> None:
    client = Client(page.url, verbose=False, download_files=tmp_path)
    try:
        assert client.predict(api_name="/v1_status")["version"] == 1
        (song,) = client.predict(**SHORT, lyrics="[verse]\nhello", api_name="/v1_generate")
        assert song["seed"] == 3
        assert soundfile.info(song["audio"]).duration == pytest.approx(1.0, abs=0.05)
        assert {"song.lrc", "song.json", "alignment.png"} <= set(song["files"])
        assert [text for _, _, text in song["lines"]] == ["[verse]", "hello"]
        (cover,) = client.predict(
            prompt="strings", task="cover", steps=2, source=handle_file(song["audio"]),
            audio_format="wav", api_name="/v1_generate",
        )  # fmt: skip
        assert cover["audio"].endswith("song.wav")
        listed = client.predict(api_name="/v1_songs")
        assert [s["id"] for s in listed] == [cover["id"], song["id"]]
        assert client.predict(cover["id"], api_name="/v1_delete") is True
        assert client.predict(cover["id"], api_name="/v1_delete") is False
        assert client.predict(api_name="/v1_cancel") == 0
        with pytest.raises(AppError, match="the prompt is empty"):
            client.predict(prompt=" ", api_name="/v1_generate")
    finally:
        client.close()


def test_the_page_and_the_api_share_port_line_and_models(page: Any) -> None:
    """What the API makes goes through the page's line, on the model that the page has loaded."""
    running, go_on = threading.Event(), threading.Event()

    def held(_: Any) -> None:
        running.set()
        assert go_on.wait(60)

    page.studio.line.submit("a" * 32, "10.0.0.1", "song", "held", held)
    assert running.wait(60)
    loaded = page.studio.engines.dit.pipeline
    song = {"prompt": "harp", "duration": 1, "inference_steps": 2, "seed": 3, "batch_size": 1}
    with httpx.Client(base_url=page.url, timeout=60) as client:
        told = [client.post("/release_task", json=song).json()["data"] for _ in range(2)]
        assert [one["queue_position"] for one in told] == [2, 3]
        # Of both together one place is in the page's line.
        assert [job.kind for job in page.studio.line.active()] == ["song", "api"]
        go_on.set()
        ids = {"task_id_list": [one["task_id"] for one in told]}
        items = [{"status": 0}]
        while not all(one["status"] for one in items):
            time.sleep(0.02)
            items = client.post("/query_result", json=ids).json()["data"]
        assert [one["status"] for one in items] == [1, 1], items
        made = json.loads(items[0]["result"])[0]
        assert client.get(made["file"]).headers["content-type"] == "audio/mpeg"
        said = {"messages": [{"role": "user", "content": "<prompt>x</prompt>"}], "stream": True}
        answer = client.post("/v1/chat/completions", json={**song, **said})
        assert answer.text.endswith("data: [DONE]\n\n")
        assert page.studio.engines.dit.pipeline is loaded
        foreign = client.get("/v1/models", headers={"origin": "https://evil.example"})
        assert foreign.status_code == 200
        assert "access-control-allow-origin" not in foreign.headers
        assert "gradio" in client.get("/").text


def test_with_the_right_key_a_wrong_key_and_none(serve_page: Callable[..., Any]) -> None:
    with serve_page(enable_api=True, api_key="open sesame") as page:
        for headers, words in (
            ({}, "asks for a key"),
            ({"X-API-Key": "open"}, "key is wrong"),
            ({"Authorization": "Bearer open sesam"}, "key is wrong"),
        ):
            caller = Caller(page.url, headers)
            for name in ("v1_status", "v1_songs", "v1_generate", "v1_inspire", "v1_cancel"):
                with pytest.raises(Refused, match=words):
                    caller.call(name)
            caller.close()
        assert httpx.post(f"{page.url}/release_task", json={"prompt": "x"}).status_code == 401
        right = Caller(page.url, {"Authorization": "Bearer open sesame"})
        (song,) = right.call("v1_generate", **SHORT)
        right.close()
        client = Client(page.url, verbose=False, headers={"X-API-Key": "open sesame"})
        try:
            assert [s["id"] for s in client.predict(api_name="/v1_songs")] == [song["id"]]
        finally:
            client.close()


def test_without_enable_api_there_is_none(serve_page: Callable[..., Any]) -> None:
    with serve_page() as page:
        assert httpx.get(f"{page.url}/gradio_api/info").json()["named_endpoints"] == {}
        assert httpx.get(f"{page.url}/v1/models").status_code == 404
        answer = httpx.post(f"{page.url}/gradio_api/call/v1_status", json={"data": []})
        assert (
            answer.status_code >= 400
            or "error"
            in httpx.get(f"{page.url}/gradio_api/call/v1_status/{answer.json()['event_id']}").text
        )


def test_sign_in_guards_page_api_and_songs(serve_page: Callable[..., Any]) -> None:
    with serve_page(enable_api=True, auth_username="anna", auth_password="pass word") as page:
        with httpx.Client(base_url=page.url, follow_redirects=True) as stranger:
            assert stranger.get("/gradio_api/info").status_code == 401
            assert stranger.post("/gradio_api/upload").status_code == 401
            assert '"auth_required":true' in stranger.get("/").text
            wrong = stranger.post("/login", data={"username": "anna", "password": "word"})
            assert wrong.status_code == 400
            right = stranger.post("/login", data={"username": "anna", "password": "pass word"})
            assert right.json() == {"success": True}
        # Clients of the API cannot sign in: where no key was given, the password is theirs.
        key = {"authorization": "Bearer pass word"}
        assert httpx.get(f"{page.url}/v1/stats").status_code == 401
        assert httpx.get(f"{page.url}/v1/stats", headers=key).status_code == 200
        client = Client(page.url, verbose=False, auth=("anna", "pass word"))
        try:
            (song,) = client.predict(**SHORT, api_name="/v1_generate")
        finally:
            client.close()
        (owner,) = (path.name for path in page.studio.store.root.iterdir())
        assert page.studio.store.get(owner, song["id"]) is not None
        assert httpx.get(f"{page.url}/songs/{song['id']}/song.flac").status_code == 404


def test_a_song_is_its_owners_alone(page: Any) -> None:
    mine = Caller(page.url, {"cookie": "acestep_visitor=mine"})
    (song,) = mine.call("v1_generate", **SHORT)
    address = f"/songs/{song['id']}/song.flac"
    whole = mine.http.get(address)
    assert whole.headers["content-type"] == "audio/flac"
    part = mine.http.get(address, headers={"range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"fLaC")
    assert httpx.get(page.url + address).status_code == 404
    other = httpx.get(page.url + address, headers={"cookie": "acestep_visitor=theirs"})
    assert other.status_code == 404
    assert mine.http.get(f"/songs/{song['id']}/record.json").status_code == 404
    encoded = mine.http.get(f"/songs/{song['id']}/song.mp3")
    assert encoded.headers["content-type"] == "audio/mpeg"
    assert httpx.get(page.url + f"/songs/{song['id']}/song.wav").status_code == 404
    mine.close()


def test_the_page_asks_nobody_else(page: Any) -> None:
    """No address of another host is loaded; links that a person may follow are no requests."""
    home = httpx.get(page.url)
    assert "default-src 'self'" in home.headers["content-security-policy"]
    loaded = re.findall(
        r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(https?:[^\"]+)", home.text
    )
    assert [link for link in loaded if not link.startswith(page.url)] == []
    assert "fonts.googleapis" not in home.text + httpx.get(f"{page.url}/theme.css").text


@pytest.fixture(scope="module")
def stage(page: Any) -> Iterator[hostile.Stage]:
    """A page to attack."""
    caller = Caller(page.url)
    yield hostile.Stage(page.url, caller, SMALL)
    caller.close()


@pytest.mark.parametrize("name", hostile.CASES)
def test_hostile_input(stage: hostile.Stage, name: str) -> None:
    safe, told = hostile.attack(stage, name)
    assert safe, told


def test_a_taken_port_is_said_and_the_next_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=rf"port {port} is taken .*use --port \d+"):
            server.check_port("127.0.0.1", port)
        assert main(["--port", str(port), "--device", "cpu"]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith(f"acestep: error: port {port} is taken")
        assert "\n" not in line
    with pytest.raises(RequestError, match=r"cannot listen on 192\.0\.2\.1"):
        server.check_port("192.0.2.1", 7860)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--api-key", "k"], "add --enable-api"),
        (["--enable-api", "--api-key", " "], "key is empty"),
        (["--auth-username", "anna"], "together"),
        (["--port", "70000"], "out of range"),
        (["--device", "mps"], "'mps' is not available here"),
        (["--device", "cpu", "--backend", "vllm"], "cannot be used on cpu"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    line = capsys.readouterr().err.strip()
    assert words in line
    assert "\n" not in line


def test_without_gradio_the_page_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name)
    )
    assert main([]) == 2
    assert "pip install 'acestep[ui]'" in capsys.readouterr().err


def test_the_page_is_opened_without_waiting_for_pytorch() -> None:
    """It is imported beside gradio, which takes as long; what comes before must not need it."""
    code = "import sys, acestep.gradio_ui.interfaces.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_link_that_cannot_be_made_is_said_in_one_line(
    port: int, forked: Callable[..., Any]
) -> None:
    """The page is served all the same. No test asks the real service."""

    def cut_off() -> None:
        def unreachable(**_: object) -> None:
            raise OSError("no network")

        gradio.networking.setup_tunnel = unreachable

    program = forked("--share", "--device", "cpu", "--port", str(port), first=cut_off)
    lines = program.said(lines=3).splitlines()
    answer = httpx.get(f"http://127.0.0.1:{port}/", timeout=30)
    os.kill(program.process.pid, signal.SIGINT)
    code, printed, said = program.ended()
    assert lines[0] == f"acestep: the page is at http://127.0.0.1:{port}/"
    assert lines[1].startswith("acestep: no public link: gradio's share service could not be")
    assert lines[2].startswith("acestep: warning: whoever can reach this address can use the page")
    assert answer.status_code == 200
    assert (printed, said.splitlines()[3:]) == ("", ["acestep: interrupted"])
    assert code == 130
