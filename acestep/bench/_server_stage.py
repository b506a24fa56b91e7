"""A service to attack, and how: bytes as they are, bodies, songs, uploads."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

import httpx

from acestep.bench.hostile_benchmark import SECRET

KEY = "key of the benchmark"
SONG: dict[str, Any] = {"prompt": "x", "duration": 0.5, "steps": 1, "seed": 1, "batch_size": 1}

# What the page calls otherwise.
_NAMES = {"batch": "batch_size", "source": "src_audio_path", "source_song": "src_audio_path",
          "repaint_start": "repainting_start", "repaint_end": "repainting_end"}  # fmt: skip
_JSON = {"content-type": "application/json"}


@dataclass
class Stage:
    """A service to attack.

    Attributes:
        url: its address.
        http: asks it with the right key.
        body_pause: seconds that it waits for more of a body, and of a head.
    """

    url: str
    http: httpx.Client
    body_pause: float

    def raw(self, sent: str, wait: float = 10.0) -> str:
        """Send characters as they are; the status and the start of the body that came."""
        host, port = self.url.removeprefix("http://").split(":")
        received = b""
        with (
            socket.create_connection((host, int(port)), timeout=wait) as connection,
            contextlib.suppress(ConnectionError),
        ):
            connection.sendall(sent.encode("latin-1"))
            while len(received) < 100_000 and (part := connection.recv(65536)):
                received += part
        head, _, body = received.partition(b"\r\n\r\n")
        status = head.split(b"\r\n")[0].decode("latin-1").removeprefix("HTTP/1.1 ")
        if b"set-cookie" in head.lower():
            raise AssertionError("a header was made up by the request")
        return shown(status, body.decode("utf-8", "replace")) if status else "hung up on"

    def get(self, path: str, *lines: str) -> str:
        """Ask for an address exactly as it is written."""
        host = [] if any(line.lower().startswith("host:") for line in lines) else [self.host]
        return self.raw(
            "\r\n".join([f"GET {path} HTTP/1.1", *host, *lines, "Connection: close", "", ""])
        )

    def post(self, body: Any = None, path: str = "/release_task", **sent: Any) -> str:
        """Send a body, or what httpx is to make one of."""
        if isinstance(body, dict):
            sent["content"], sent["headers"] = json.dumps(body), _JSON
        elif body is not None:
            sent = {"content": body, "headers": _JSON, **sent}
        return self.outcome(self.http.post(path, **sent))

    def song(self, **fields: Any) -> str:
        """Ask for a song, and wait for what becomes of it."""
        renamed = {_NAMES.get(name, name): value for name, value in fields.items()}
        return self.post({**SONG, **renamed})

    def source(self, content: bytes, name: str) -> str:
        """Work from an upload."""
        data = {**{key: str(value) for key, value in SONG.items()}, "task_type": "cover"}
        return self.post(data=data, files={"src_audio": (name, content)})

    def outcome(self, answer: httpx.Response) -> str:
        """What an answer says; of a task that was taken, what came of it."""
        told = shown(str(answer.status_code), answer.text)
        try:
            task = answer.json()["data"]["task_id"]
        except (ValueError, KeyError, TypeError):
            return told
        while True:
            asked = self.http.post("/query_result", json={"task_id_list": [task]})
            (item,) = asked.json()["data"]
            if item["status"]:
                break
            time.sleep(0.05)
        (made,) = json.loads(item["result"])
        prompt = str(made.get("prompt"))[:40]
        return f"failed: {made['error']}" if item["status"] == 2 else f"a song of {prompt!r}"

    def alive(self) -> bool:
        """Whether it answers, at the third try at the latest: it hangs up on who is slow."""
        for _ in range(3):
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/health", timeout=60).status_code == 200
        return False

    @property
    def host(self) -> str:
        """The header of that name."""
        return f"Host: {self.url.removeprefix('http://')}"

    def head(self, path: str = "/release_task", **lines: Any) -> str:
        """The head of a POST, with the key."""
        given = [f"{name.replace('_', '-')}: {value}" for name, value in lines.items()]
        return "\r\n".join(
            [f"POST {path} HTTP/1.1", self.host, f"Authorization: Bearer {KEY}", *given, "", ""]
        )


def shown(status: str, body: str) -> str:
    """An answer in a line.

    Raises:
        AssertionError: it holds what lies outside.
    """
    if SECRET in body or "SQLite format" in body:
        raise AssertionError("a file outside was read")
    try:
        said = json.loads(body)
        body = said.get("detail", body) if isinstance(said, dict) else body
    except ValueError:
        pass
    return f"{status[:3]}: {str(body)[:90]}"
