"""The HTTP API beside the page: at its port, with its turn in the page's line, on its models."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.gradio_ui.jobs import Job
from acestep.gradio_ui.settings import PageOptions
from acestep.gradio_ui.studio import Studio
from acestep.server.engines import Engines, Report
from acestep.server.options import ServerOptions, from_environment
from acestep.server.service import Service
from acestep.server.store import QUEUED

if TYPE_CHECKING:
    from acestep.device import DevicePolicy
    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler

Message = MutableMapping[str, Any]
App = Callable[[Message, Any, Any], Awaitable[None]]

_KIND = "api"


class SharedEngines(Engines):
    """The page's own models for whoever asks for what it has chosen; others by name, as ever.

    Args:
        studio: whose models they are.
        options: of the service.
    """

    def __init__(self, studio: Studio, options: ServerOptions) -> None:
        super().__init__(options.devices[0], options)
        self._studio = studio

    @property
    def policy(self) -> DevicePolicy:
        """The device that the page has chosen.

        Raises:
            RequestError: it is not there.
        """
        return self._studio.choice.policy()

    def music(self, name: str, report: Report) -> AceStepHandler:
        """See `Engines.music`; no adapter that a visitor chose stays on."""
        page, choice = self._studio.engines, self._studio.choice
        if not page.dit_loaded and name == choice.model:
            page.load(choice, report)
        loaded = page.dit.checkpoint.name if page.dit_loaded and page.dit.checkpoint else None
        if loaded is None or name not in (choice.model, loaded):
            return super().music(name, report)
        page.adapt("", 1.0)
        return page.dit

    def planner(self, name: str, backend: str, report: Report) -> LLMHandler:
        """See `Engines.planner`."""
        page, choice = self._studio.engines, self._studio.choice
        if backend not in ("", choice.backend) or not choice.lm_model:
            return super().planner(name, backend, report)
        if not page.llm_loaded and (name or self.options.lm_model) == choice.lm_model:
            page.load_planner(choice, report)
        if page.llm_loaded and name in ("", choice.lm_model, page.llm.model_name):
            return page.llm
        return super().planner(name, backend, report)


class SharedLine:
    """One line for page and API: while tasks of the API wait, one place in the page's is theirs.

    Who is next there is the API's own order; then it goes to the end again. So neither can keep
    the other waiting for more than a song at a time.

    Args:
        studio: has the line, in whose thread all is done.
        service: has the API's tasks, and no worker that runs.
    """

    def __init__(self, studio: Studio, service: Service) -> None:
        self.studio, self.service = studio, service
        self._place: Job | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Take up what waits, also from an earlier run."""
        self.service.line.others = self._others
        self.service.line.arrived = self.queue_up
        if self.service.store.counts()[QUEUED]:
            self.queue_up()

    def queue_up(self) -> None:
        """Have a place in the line, if there is none."""
        with self._lock:
            if self._place is None:
                self._place = self.studio.line.submit_uncounted(_KIND, self._turn)

    def place_beside(self, page: Any) -> None:
        """Serve the API at the port at which gradio serves the page.

        Args:
            page: gradio's application, launched. It is gone around, not through: its compression
                would hold back streams, and its idea of which web sites may ask is not the API's.
        """
        from acestep.server.app import create_app

        api = create_app(self.service.options, self.service)
        paths = frozenset(str(getattr(route, "path", "")) for route in api.routes)
        behind = page.middleware_stack or page.build_middleware_stack()
        page.middleware_stack = Beside(behind, api, paths)

    def close(self) -> None:
        """Let the API's song that runs end, for a while; all that waits stays in its database."""
        line = self.service.line
        line.close()
        grace = threading.Timer(self.service.limits.grace, line.close, (True,))
        grace.start()
        self.studio.line.close()
        grace.cancel()
        self.service.close()

    def _turn(self, job: Job) -> None:
        with self._lock:
            self._place = None
        (worker,) = self.service.workers
        worker.step(0.0)
        if not self.service.line.closed and self.service.store.counts()[QUEUED]:
            self.queue_up()

    def _others(self) -> int:
        """Jobs of the page that come before a new task of the API."""
        return sum(job.kind != _KIND for job in self.studio.line.active())


class Beside:
    """The API's addresses to the API, all others to the page.

    Args:
        page, api: applications; the API sees to its own limits, headers and keys.
        paths: the API's.
    """

    def __init__(self, page: App, api: App, paths: frozenset[str]) -> None:
        self.page, self.api, self.paths = page, api, paths

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Serve one request."""
        theirs = scope["type"] == "http" and scope["path"] in self.paths
        await (self.api(dict(scope), receive, send) if theirs else self.page(scope, receive, send))


def open_api(studio: Studio) -> SharedLine:
    """The service behind the API, on the page's models and in its line; not yet at work.

    Raises:
        RequestError: another process uses its folder.
    """
    options = server_options(studio.options, studio.folder, tuple(studio.engines.models()))
    return SharedLine(studio, Service(options, lambda _: SharedEngines(studio, options)))


def server_options(page: PageOptions, folder: Path, models: tuple[str, ...]) -> ServerOptions:
    """What the API is told, where the command line speaks of the page.

    Args:
        page: its options.
        folder: of the page; the API's tasks are kept below it (`ACESTEP_API_DATA` moves them).
        models: that can be chosen on the page.
    """
    choice = page.choice
    options = from_environment({}, os.environ)
    return replace(
        options,
        # Through gradio's share service everybody can ask, under a name that is not known before.
        host="0.0.0.0" if page.share else page.server_name,
        port=page.port,
        # A page that asks who comes does not stand open beside.
        api_key=page.api_key or options.api_key or page.auth_password,
        # The page has said so, if it stands open.
        open_without_key=True,
        models=tuple(dict.fromkeys((choice.model, *models))),
        lm_model=choice.lm_model,
        lm_backend=choice.backend,
        devices=(choice.device,),
        checkpoint=page.checkpoint,
        offload=choice.offload,
        quantize=choice.quantize,
        engine=choice.engine,
        data_dir=None if os.environ.get("ACESTEP_API_DATA", "").strip() else folder / "api",
    )
