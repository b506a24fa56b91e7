"""Workers elsewhere: what they make comes here as if it had been made here; what stops, stops there."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from server_support import SONG, Server

from acestep.errors import GenerationError
from acestep.handler import AceStepHandler
from acestep.llm_inference import LLMHandler
from acestep.server.distant import Distant, Far


class ThreadWire:
    """Calls to one in a thread; what goes there and comes back is a copy, as between machines."""

    def __init__(self, far: Far) -> None:
        self._far, self._threads = far, ThreadPoolExecutor(2)

    def call(self, name: str, *arguments: Any) -> Future[Any]:
        copied = pickle.loads(pickle.dumps(arguments))
        return self._threads.submit(getattr(self._far, name), *copied)

    def done(self, handle: Future[Any], seconds: float) -> bool:
        return bool(wait([handle], seconds).done)

    def result(self, handle: Future[Any]) -> Any:
        return pickle.loads(pickle.dumps(handle.result()))

    def close(self) -> None:
        self._threads.shutdown()


@pytest.fixture
def far(
    make_server: Callable[..., Server], handler: AceStepHandler, planner: LLMHandler
) -> Iterator[Server]:
    """A server whose one worker has its work done elsewhere."""
    server = make_server(working=False)
    service = server.service
    worker = Far("cpu", replace(service.options, data_dir=None))
    worker.engines._music["demo"] = handler
    worker.engines._planners["auto", ""] = planner
    wire = ThreadWire(worker)
    service.workers[0].work = Distant(wire, service.store, service.sounds, service.catalogue)
    yield server
    wire.close()


def test_songs_and_words_come_from_elsewhere(far: Server, song_file: Path) -> None:
    fields = {name: str(value) for name, value in SONG.items()}
    with song_file.open("rb") as file:
        asked = far.client.post(
            "/release_task", data={**fields, "task_type": "cover"}, files={"src_audio": file}
        )
    assert far.service.workers[0].step()
    item = far.item(asked.json()["data"]["task_id"])
    assert item["status"] == 1, item
    (made,) = json.loads(item["result"])
    assert far.client.get(made["file"]).content[:4] == b"RIFF"
    assert [path.name for path in far.store.results.iterdir()] == [made["file"].split("=")[1]]
    assert (made["dit_model"], list(far.store.uploads.iterdir())) == ("demo", [])
    task, _ = far.service.line.submit("here", "sample", _asked(far, sample_query="a flute"))
    assert far.service.workers[0].step()
    described = far.store.get(task.id)
    assert described is not None
    assert described.result is not None, described
    assert described.result["caption"]


def test_what_is_cancelled_here_stops_there(far: Server) -> None:
    task = far.release(inference_steps=1000)
    far.service.workers[0].work._followed = _cancelling(far, task)  # type: ignore[attr-defined]
    assert far.service.workers[0].step()
    assert json.loads(far.item(task)["result"])[0]["error"] == "cancelled"
    assert far.store.usage() == (0, 0)
    there: Any = far.service.workers[0].work
    assert there.wire._far._stopped.is_set()


def test_what_fails_there_is_told_here(far: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise GenerationError("the worker died while making it; ask again")

    monkeypatch.setattr(Far, "song", broken)
    task = far.release()
    assert far.service.workers[0].step()
    assert "the worker died" in json.loads(far.item(task)["result"])[0]["error"]


def _cancelling(far: Server, task: str) -> Callable[..., Any]:
    """The work as it is, but for somebody who cancels once it has begun."""
    work: Any = far.service.workers[0].work
    followed = work._followed

    def follow(report: Any, name: str, *arguments: Any) -> Any:
        def reported(fraction: float, desc: str = "") -> None:
            far.service.line.stop(task)
            report(fraction, desc=desc)

        return followed(reported, name, *arguments)

    return follow


def _asked(far: Server, **fields: Any) -> dict[str, Any]:
    from acestep.server.asking import understood

    return understood(fields).plain()
