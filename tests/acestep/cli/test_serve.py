"""`acestep serve`: its options and ACE-Step's variables, and a process that serves."""

from __future__ import annotations

import importlib.util
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from acestep.acestep_v15_pipeline import build_parser, main
from acestep.bench._programs import ServerProcess, free_port
from acestep.cli import serve
from acestep.errors import RequestError
from acestep.server import serving
from acestep.server.options import Limits, ServerOptions, from_environment


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[ServerOptions]:
    """What the command would serve."""
    seen: list[ServerOptions] = []
    monkeypatch.setattr(serving, "serve", lambda options, say: seen.append(options.checked()))
    for name in ("ACESTEP_API_HOST", "ACESTEP_API_PORT", "ACESTEP_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return seen


def test_options_come_from_the_command_line(told: list[ServerOptions], tmp_path: Path) -> None:
    line = (
        f"serve --host 0.0.0.0 --port 9001 --chat-port 9002 --api-key k --model demo turbo "
        f"--lm-model demo --backend pt --init-llm --device cpu cuda:1 --allow-folder {tmp_path} "
        f"--allow-origin http://a.b --data-dir {tmp_path}/d --offload dit"
    )
    assert main(line.split()) == 0
    assert told == [
        ServerOptions(
            host="0.0.0.0", port=9001, chat_port=9002, api_key="k", models=("demo", "turbo"),
            lm_model="demo", lm_backend="pt", init_llm=True, devices=("cpu", "cuda:1"),
            allowed=(tmp_path,), origins=("http://a.b",), data_dir=tmp_path / "d", offload="dit",
        )
    ]  # fmt: skip
    assert main(["serve"]) == 0
    assert told[1] == ServerOptions()
    assert serve.main(["--port", "7"]) == 0
    assert told[2] == ServerOptions(port=7)


def test_and_from_the_variables(told: list[ServerOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "API_HOST": "localhost", "API_PORT": "9003", "API_KEY": "k", "CONFIG_PATH": "a",
        "CONFIG_PATH2": "b", "LM_MODEL_PATH": "lm", "LM_BACKEND": "pt", "INIT_LLM": "true",
        "QUEUE_MAXSIZE": "7",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"ACESTEP_{name}", value)
    assert main(["serve", "--port", "9004"]) == 0
    assert told == [
        ServerOptions(
            host="localhost", port=9004, api_key="k", models=("a", "b"), lm_model="lm",
            lm_backend="pt", init_llm=True, limits=Limits(waiting=7),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [("INIT_LLM", "perhaps"), ("API_PORT", "many"), ("QUEUE_MAXSIZE", "0")]
)
def test_variables_that_say_nothing(wrong: tuple[str, str]) -> None:
    with pytest.raises(RequestError, match=wrong[0]):
        from_environment({}, {f"ACESTEP_{wrong[0]}": wrong[1]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--host 0.0.0.0", "--api-key"),
        ("--port 0", "out of range"),
        ("--port 9001 --chat-port 9001", "another"),
        ("--allow-folder nowhere", "no such folder"),
        ("--device toaster", "toaster"),
    ],
)
def test_options_that_do_not_fit(
    told: list[ServerOptions], capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    try:
        code = main(["serve", *line.split()])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not told


def test_songs_are_planned_ahead_where_the_device_does_both(told: list[ServerOptions]) -> None:
    assert main(["serve", "--ahead"]) == 0
    assert told == [ServerOptions(ahead=True)]
    with pytest.raises(RequestError, match="leave out it or --ray"):
        ServerOptions(ahead=True, ray="local").checked()


def test_an_empty_key_is_none() -> None:
    with pytest.raises(RequestError, match="key is empty"):
        ServerOptions(api_key=" ").checked()
    assert ServerOptions(host="0.0.0.0", open_without_key=True).checked().hosts == ()


def test_ahead_is_refused_before_anything_listens() -> None:
    with pytest.raises(RequestError, match="cpu does not do both at a time"):
        serving.serve(ServerOptions(devices=("cpu",), ahead=True), print)


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "fastapi" else known(name, *a)
    )
    assert main(["serve"]) == 2
    assert "acestep[server]" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", "--port", port, "--data-dir", str(tmp_path)]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err
    with pytest.raises(RequestError, match="cannot listen"):
        serving.listening("192.0.2.1", 8001)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--device mps", "device 'mps' is not available here"),
        ("--engine torch --device cpu cuda:7", "'cuda:7'"),
    ],
)
def test_an_absent_device_is_refused_at_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, message: str
) -> None:
    assert main(["serve", *line.split(), "--data-dir", str(tmp_path / "d")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert message in told
    assert not (tmp_path / "d").exists()


def test_help_names_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--help"])
    assert "--allow-folder" in capsys.readouterr().out


def test_a_process_that_serves(tmp_path: Path) -> None:
    chat = free_port()
    with ServerProcess(tmp_path, "--chat-port", str(chat)) as server:
        assert httpx.get(f"{server.url}/v1/models").json()["data"]["default_model"] == "demo"
        listed = httpx.get(f"http://127.0.0.1:{chat}/v1/models").json()
        assert listed["data"][0]["id"] == "acestep/demo"
        assert httpx.get(f"http://127.0.0.1:{chat}/health").status_code == 200
        assert "server" not in httpx.get(f"{server.url}/health").headers
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 200_000)
            raw.settimeout(10)
            assert b" 400 " in raw.recv(4096)
        second = main(["serve", "--port", str(free_port()), "--data-dir", str(tmp_path)])
        assert second == 2
        assert server.stop() == 0
    assert not any("Traceback" in line for line in server.errors)


@pytest.mark.soak
def test_a_death_in_the_middle_of_a_song(tmp_path: Path) -> None:
    song = {"prompt": "x", "duration": 1, "inference_steps": 300, "batch_size": 1, "seed": 1}

    def item(server: ServerProcess, task: str) -> dict[str, Any]:
        answer = httpx.post(f"{server.url}/query_result", json={"task_id_list": [task]})
        (told,) = answer.json()["data"]
        return {**told, "song": json.loads(told["result"])[0]}

    def under_way(server: ServerProcess, task: str) -> None:
        while item(server, task)["song"].get("progress", 0) <= 0.35:
            time.sleep(0.02)

    with ServerProcess(tmp_path) as server:
        first = httpx.post(f"{server.url}/release_task", json=song).json()["data"]["task_id"]
        under_way(server, first)
        server.kill()
        server.start()
        while (told := item(server, first))["status"] == 0:
            time.sleep(0.05)
        assert told["status"] == 1
        second = httpx.post(f"{server.url}/release_task", json=song).json()["data"]["task_id"]
        for _ in range(2):
            under_way(server, second)
            server.kill()
            server.start()
        told = item(server, second)
        assert (told["status"], told["song"]["error"]) == (
            2, "the server died twice while making it",
        )  # fmt: skip
        assert httpx.get(server.url + item(server, first)["song"]["file"]).status_code == 200
        assert len(list((tmp_path / "results").iterdir())) == 1


def test_a_head_that_does_not_come() -> None:
    import asyncio

    async def run() -> bytes:
        protocol = serving._protocol(Limits(head_time=0.1))
        import uvicorn
        from uvicorn.server import ServerState

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        config = uvicorn.Config(app, log_config=None, ws="none")
        config.load()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: protocol(config, ServerState(), {}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        first = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHos")
        rest = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        server.close()
        return first[:12] + rest

    assert asyncio.run(run()) == b"HTTP/1.1 204"
