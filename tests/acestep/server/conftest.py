"""Fixtures for the service's tests: services in this process, with one loaded checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from server_support import Server

from acestep.handler import AceStepHandler
from acestep.llm_inference import LLMHandler
from acestep.server.app import create_app
from acestep.server.options import Limits, ServerOptions
from acestep.server.service import Service


@pytest.fixture(scope="session")
def planner() -> Iterator[LLMHandler]:
    """The built-in language model on the CPU."""
    made = LLMHandler()
    message, ok = made.initialize(None, "demo", "pt", "cpu")
    assert ok, message
    yield made
    made.unload()


@pytest.fixture
def make_server(handler: AceStepHandler, planner: LLMHandler, tmp_path: Path) -> Iterator[Any]:
    """Makes servers that are closed at the end; the models stay loaded for other tests."""
    made: list[tuple[Server, Any]] = []

    def make(working: bool = True, limits: Limits | None = None, **options: Any) -> Server:
        given = ServerOptions(
            models=("demo",), devices=("cpu",), data_dir=tmp_path / f"data-{len(made)}",
            limits=limits or Limits(),
        )  # fmt: skip
        service = Service(replace(given, **options).checked())
        for worker in service.workers:
            worker.work.engines._music["demo"] = handler
            worker.work.engines._planners["", ""] = planner
            worker.work.engines._planners["auto", ""] = planner
            worker.work.engines.close = lambda: None  # type: ignore[method-assign]
        if working:
            service.start()
        client = TestClient(
            create_app(service.options, service), base_url="http://127.0.0.1:8001",
            raise_server_exceptions=False,
        )  # fmt: skip
        client.__enter__()
        made.append((Server(service, client), client))
        return made[-1][0]

    yield make
    for server, client in made:
        client.__exit__(None, None, None)
        server.service.close()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """A server with the usual limits, that works."""
    return make_server()


@pytest.fixture
def idle(make_server: Callable[..., Server]) -> Server:
    """A server whose worker does nothing, so that tasks wait."""
    return make_server(working=False)
