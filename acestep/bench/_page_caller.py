"""A small client of the page's API, for measurements and tests: threads, sessions, deadlines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """The server answered with a sentence instead of a result."""


class Caller:
    """Calls the endpoints of one server.

    Args:
        url: of the page.
        headers: sent with every request, for example the key.
        timeout: seconds for each wait.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, timeout: float = 120.0
    ) -> None:
        self.http = httpx.Client(base_url=url, headers=dict(headers or {}), timeout=timeout)
        info = self.http.get("/gradio_api/info").json()
        self._inputs = {
            name: {p["parameter_name"]: p["parameter_default"] for p in end["parameters"]}
            for name, end in info["named_endpoints"].items()
        }

    def submit(self, name: str, **fields: Any) -> str:
        """Send a call; its id.

        Raises:
            Refused: the server does not take it.
        """
        data = list({**self._inputs[f"/{name}"], **fields}.values())
        return self.post(name, {"data": data})

    def post(self, name: str, body: Any) -> str:
        """Send any body to an endpoint; the call's id."""
        # In ASCII, so that halves of characters can be sent too.
        head = {"content-type": "application/json"}
        answer = self.http.post(f"/gradio_api/call/{name}", content=json.dumps(body), headers=head)
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code} {answer.text[:160]}")
        return str(answer.json()["event_id"])

    def result(self, name: str, call: str) -> Any:
        """What a call returned.

        Raises:
            Refused: it failed; the sentence says why.
        """
        with self.http.stream("GET", f"/gradio_api/call/{name}/{call}") as stream:
            event = ""
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: ") and event == "complete":
                    return json.loads(line.removeprefix("data: "))[0]
                elif line.startswith("data: ") and event == "error":
                    told = json.loads(line.removeprefix("data: "))
                    text = told.get("error") if isinstance(told, dict) else told
                    raise Refused(str(text or "the call was not understood"))
        raise Refused("the connection ended without an answer")

    def call(self, name: str, **fields: Any) -> Any:
        """Send a call and wait for its result."""
        return self.result(name, self.submit(name, **fields))

    def upload(self, content: bytes, name: str) -> dict[str, Any]:
        """Upload a file; what to give as `source`.

        Raises:
            Refused: the server does not take it.
        """
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code} {answer.text[:160]}")
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def close(self) -> None:
        """Close its connections."""
        self.http.close()
