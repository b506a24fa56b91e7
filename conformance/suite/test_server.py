"""The HTTP service: a song asked for over HTTP is made on the target, and heard over HTTP.

Its worker runs in the test's thread, because a simulated device is one of this thread.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from conformance.entrypoints import covers
from conformance.suite.support import SAMPLE_RATE, SECONDS, STEPS, Api
from conformance.targets import Target

SONG = {
    "prompt": "warm piano", "duration": SECONDS, "inference_steps": STEPS, "batch_size": 1,
    "seed": 3, "audio_format": "wav",
}  # fmt: skip


class Server:
    """A service without workers of its own, and who asks it."""

    def __init__(self, api: Api, folder: Path, target: Target) -> None:
        create = api.get("server.app:create_app", optional="fastapi")
        from starlette.testclient import TestClient

        options = api.get("server.options:ServerOptions")(
            models=("demo",), lm_model="demo", devices=(target.device,), data_dir=folder
        )
        self.service = api.get("server.service:Service")(options)
        app = create(options, self.service)
        self.client = TestClient(app, base_url="http://127.0.0.1:8001")

    @property
    def worker(self) -> Any:
        """The one worker."""
        return self.service.workers[0]

    def asked(self, path: str, body: dict[str, Any]) -> Any:
        """The data of an answer."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def made(self, **fields: Any) -> dict[str, Any]:
        """What became of a song once the worker has taken it up."""
        task = self.asked("/release_task", {**SONG, **fields})["task_id"]
        assert self.worker.step()
        (item,) = self.asked("/query_result", {"task_id_list": [task]})
        return dict(item)

    def close(self) -> None:
        """Let the models and the folder go."""
        self.worker.work.close()
        self.service.close()


@pytest.fixture
def server(api: Api, target: Target, tmp_path: Path) -> Iterator[Server]:
    """A service on the target."""
    made = Server(api, tmp_path / "server", target)
    yield made
    made.close()


@covers(
    "A1",
    "server.app:create_app",
    "server.asking:Asked.built",
    "server.engines:Engines",
    "server.engines:Engines.music",
    "server.engines:Engines.policy",
    "server.service:Service",
    "server.sounds:Sounds.read",
    "server.work:Work.song",
    "server.workers:Worker",
    "server.workers:Worker.step",
)
def test_songs_over_http(server: Server) -> None:
    item = server.made()
    (song,) = json.loads(item["result"])
    assert (item["status"], song["seed_value"], song["dit_model"]) == (1, "3", "demo"), song
    audio = server.client.get(song["file"])
    samples, rate = soundfile.read(io.BytesIO(audio.content))
    assert (samples.shape, rate) == ((round(SECONDS * SAMPLE_RATE), 2), SAMPLE_RATE)
    assert abs(samples).max() > 0
    again = server.made(task_type="cover", src_audio_path=song["file"])
    assert again["status"] == 1, again


@covers(
    "A1", "server.engines:Engines.planner", "server.engines:backend_on", "server.work:Work.sample"
)
def test_words_over_http(server: Server, api: Api) -> None:
    assert server.made(thinking=True)["status"] == 1
    understood = api.get("server.asking:understood")
    asked = understood({"prompt": "piano", "lyrics": "[verse]\nla", "bpm": 90})
    sample = server.worker.work.sample(asked, lambda *_, **__: None)
    assert sample["bpm"] == 90
    assert sample["caption"]


@covers("A1", "server.app:is_openai")
def test_a_song_in_a_chat(server: Server) -> None:
    body = {
        "messages": [{"role": "user", "content": "<prompt>piano</prompt>"}],
        **{name: value for name, value in SONG.items() if name != "prompt"},
    }
    answers: list[Any] = []
    asking = threading.Thread(
        target=lambda: answers.append(server.client.post("/v1/chat/completions", json=body))
    )
    asking.start()
    for _ in range(60):
        if server.worker.step():
            break
    asking.join(60)
    (part,) = answers[0].json()["choices"][0]["message"]["audio"]
    samples, _ = soundfile.read(
        io.BytesIO(base64.b64decode(part["audio_url"]["url"].split(",")[1]))
    )
    assert len(samples) == round(SECONDS * SAMPLE_RATE)
    assert server.client.get("/v1/models").json()["data"]["default_model"] == "demo"


class Inline:
    """Calls to one that works elsewhere, made at once."""

    def __init__(self, far: Any) -> None:
        self.far = far

    def call(self, name: str, *arguments: Any) -> Any:
        return getattr(self.far, name)(*arguments)

    def done(self, handle: Any, seconds: float) -> bool:
        return True

    def result(self, handle: Any) -> Any:
        return handle

    def close(self) -> None:
        self.far.engines.close()


@covers(
    "A1",
    *(f"server.distant:Distant{name}" for name in ("", ".close", ".sample", ".song")),
    *(f"server.distant:Far{name}" for name in ("", ".look", ".sample", ".song", ".stop")),
    "server.work:Work.close",
)
def test_a_song_made_elsewhere(server: Server, api: Api, target: Target) -> None:
    service, far = (
        server.service,
        api.get("server.distant:Far")(target.device, server.service.options),
    )
    distant = api.get("server.distant:Distant")
    work = distant(Inline(far), service.store, service.sounds, service.catalogue)
    server.worker.work.close()
    server.worker.work = work
    item = server.made()
    assert (item["status"], far.look()[0] > 0.9) == (1, True), item
    (song,) = json.loads(item["result"])
    assert server.client.get(song["file"]).content[:4] == b"RIFF"
    asked = api.get("server.asking:understood")({"sample_query": "piano"})
    assert work.sample(asked, lambda *_, **__: None)["caption"]
    far.stop()
    server.worker.work.close()


@covers(
    "A1",
    "gradio_ui.sharing:SharedEngines",
    *(f"gradio_ui.sharing:SharedEngines.{name}" for name in ("music", "planner", "policy")),
    "gradio_ui.sharing:open_api",
)
def test_the_page_and_the_api_share_models(api: Api, target: Target, tmp_path: Path) -> None:
    open_api = api.get("gradio_ui.sharing:open_api", optional="fastapi")
    options = api.get("gradio_ui.settings:PageOptions").of(
        {"config_path": "demo", "lm_model_path": "demo", "device": target.device}
    )
    engines = api.get("gradio_ui.engines:Engines")()
    shared = open_api(api.get("gradio_ui.studio:Studio")(options, engines, tmp_path))
    (worker,), store = shared.service.workers, shared.service.store
    asked = api.get("server.asking:understood")({**SONG, "thinking": True})
    task, _ = shared.service.line.submit("here", "song", asked.plain())
    assert worker.step(0.0)
    made = store.get(task.id)
    assert made.state == "succeeded", made
    assert engines.dit_loaded
    assert engines.llm_loaded
    assert engines.dit.device.startswith(target.device)
    assert worker.work.engines.policy.name.startswith(target.device)
    shared.close()
    engines.unload()
