"""Fixtures for the page's tests: a page in this process, and studios without one."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acestep.gradio_ui.engines import Engines
from acestep.gradio_ui.limits import Limits
from acestep.gradio_ui.settings import PageOptions
from acestep.gradio_ui.studio import Studio, Visitor, prepare
from acestep.handler import AceStepHandler

ANNA = Visitor("a" * 32, "10.0.0.1")
BERT = Visitor("b" * 32, "10.0.0.2")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port() -> int:
    """A port for a server of the test's own."""
    return free_port()


@pytest.fixture(scope="session")
def engines(handler: AceStepHandler) -> Engines:
    """The built-in checkpoint, loaded once for all tests of a process."""
    return Engines(handler)


@pytest.fixture
def make_studio(engines: Engines, tmp_path: Path) -> Iterator[Callable[..., Studio]]:
    """Makes studios that are closed at the end; the models stay loaded for other tests."""
    made: list[Studio] = []

    def make(limits: Limits | None = None, **options: Any) -> Studio:
        given = PageOptions.of({"config_path": "demo", "device": "cpu", **options})
        made.append(Studio(given, engines, tmp_path / f"page-{len(made)}", limits))
        return made[-1]

    yield make
    for studio in made:
        studio.line.close()


@pytest.fixture
def studio(make_studio: Callable[..., Studio]) -> Studio:
    """A studio with the usual limits."""
    return make_studio()


@dataclass(frozen=True)
class Page:
    """A page that is being served."""

    studio: Studio
    url: str


@pytest.fixture(scope="session")
def serve_page(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Serves pages from this process: `with serve_page(option=…) as page:`."""

    @contextmanager
    def serve(limits: Limits | None = None, **options: Any) -> Iterator[Page]:
        from acestep.gradio_ui import sharing
        from acestep.gradio_ui.interfaces import server

        folder = tmp_path_factory.mktemp("page")
        given = PageOptions.of(
            {"config_path": "demo", "device": "cpu", "port": free_port(), **options}
        )
        prepare(folder)
        studio = Studio(given.checked(), engines, folder, limits)
        shared = sharing.open_api(studio) if given.enable_api else None
        blocks, url, _ = server.launch(studio, shared)
        if shared:
            shared.start()
        try:
            yield Page(studio, url.rstrip("/"))
        finally:
            if shared:
                shared.close()
            studio.line.close()
            blocks.close(verbose=False)

    return serve
