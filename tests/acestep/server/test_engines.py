"""The models of a device: loaded once, let go for others, used or refused; names of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from server_support import Server

from acestep.errors import RequestError
from acestep.llm_inference import LLMHandler
from acestep.server import engines as room
from acestep.server.app import create_app
from acestep.server.catalogue import Catalogue
from acestep.server.engines import Engines, backend_on
from acestep.server.options import ServerOptions
from acestep.server.service import Service


def test_models_come_and_go(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_LOADED", 1)
    told: list[str] = []

    def report(fraction: float, desc: str = "") -> None:
        told.append(desc)

    # The planner is loaded by the suite's case, and takes longer.
    engines = Engines("cpu", ServerOptions())
    first = engines.music(str(demo_folder), report)
    assert first.pipeline is not None
    assert engines.music(str(demo_folder), report) is first
    assert told[0] == "loading"
    second = engines.music("demo", report)
    assert (first.pipeline, second.checkpoint and second.checkpoint.name) == (None, "demo")
    engines.close()
    assert second.pipeline is None


def test_what_cannot_be_loaded_is_refused(planner: LLMHandler) -> None:
    engines = Engines("cpu", ServerOptions())
    engines._planners["auto", ""] = planner
    with pytest.raises(RequestError, match="no checkpoint folder"):
        engines.music("nowhere", lambda *_, **__: None)
    with pytest.raises(RequestError, match="no language model"):
        engines.planner("nowhere", "", lambda *_, **__: None)
    with pytest.raises(RequestError, match="unknown backend"):
        engines.planner("demo", "other", lambda *_, **__: None)
    assert planner.llm_initialized, "what is there was let go for what is not"
    with pytest.raises(RequestError, match="unknown backend"):
        backend_on(engines.policy, "other")
    with pytest.raises(RequestError, match="cannot be used on cpu"):
        backend_on(engines.policy, "vllm")


def test_names_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Catalogue(ServerOptions()).names == ["demo"]
    assert Catalogue(ServerOptions(models=("auto",))).names == ["demo"]
    for name in ("acestep-v15-base", "acestep-v15-turbo"):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"audio_acoustic_hidden_dim": 64}')
        (folder / "model.safetensors").write_bytes(b"")
    found = Catalogue(ServerOptions())
    assert found.names == ["acestep-v15-turbo", "acestep-v15-base", "demo"]
    assert found.name("acestep/turbo") == found.default == "acestep-v15-turbo"
    assert found.source("") == "auto"
    assert found.name("base") == "acestep-v15-base"
    some: Any = Catalogue(ServerOptions(models=("base", str(folder))))
    assert some.names == ["base", "acestep-v15-turbo"]
    assert (some.name("acestep-v15-base"), some.source("turbo")) == ("base", str(folder))
    with pytest.raises(RequestError, match="unknown model 'demo'; choose from base"):
        some.name("demo")


def test_names_of_language_models() -> None:
    found = Catalogue(ServerOptions(lm_model="demo"))
    for name in ("", "auto", "demo"):
        assert found.planner(name) == ""
    assert Catalogue(ServerOptions()).planner("checkpoints/demo") == "demo"
    # Clients send it with every song, whether or not it is needed.
    assert found.planner("acestep-5Hz-lm-9B") == "acestep-5Hz-lm-9B"
    for path in ("/etc", "../x", "~/x", "..", "C:\\x", "/"):
        with pytest.raises(RequestError, match=r"names no language model here; choose from .*demo"):
            found.planner(path)


def test_two_workers_load_and_sing_at_once(tmp_path: Path) -> None:
    """Each has models of its own: what one loads is none of the other's."""
    options = ServerOptions(
        models=("demo",), lm_model="demo", devices=("cpu", "cpu"), data_dir=tmp_path / "data"
    )
    service = Service(options.checked())
    service.start()
    try:
        with TestClient(create_app(options, service), base_url="http://127.0.0.1:8001") as client:
            server = Server(service, client)
            asked = [server.release(seed=3, thinking=True) for _ in range(2)]
            files = [json.loads(server.ended(task)["result"])[0]["file"] for task in asked]
            songs = [client.get(file).content for file in files]
        loaded = [worker.work.engines.has_music("demo") for worker in service.workers]
    finally:
        service.close()
    assert loaded == [True, True]
    assert len(songs[0]) > 90_000
    assert songs[0] == songs[1]
