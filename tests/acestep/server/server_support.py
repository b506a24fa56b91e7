"""What the service's tests share: the quickest song, and a service with one who asks it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient

from acestep.server.service import Service
from acestep.server.store import Store

SONG: dict[str, Any] = {
    "prompt": "warm piano", "duration": 1, "inference_steps": 2, "batch_size": 1, "seed": 5,
    "audio_format": "wav",
}  # fmt: skip
KEY = "a key for tests"


@dataclass
class Server:
    """A service that answers, and one who asks it."""

    service: Service
    client: TestClient

    @property
    def store(self) -> Store:
        """Its tasks."""
        return self.service.store

    def release(self, **fields: Any) -> str:
        """Ask for a song; its task's id."""
        answer = self.client.post("/release_task", json={**SONG, **fields})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"]["task_id"])

    def item(self, task_id: str) -> dict[str, Any]:
        """What is said of a task."""
        answer = self.client.post("/query_result", json={"task_id_list": [task_id]})
        assert answer.status_code == 200, answer.text
        (item,) = answer.json()["data"]
        return dict(item)

    def ended(self, task_id: str) -> dict[str, Any]:
        """The same once it has ended."""
        deadline = time.monotonic() + 120
        while (item := self.item(task_id))["status"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return item
