"""Serves the page: one port, gradio inside a guard, and the songs' own addresses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from acestep.device import describe_devices
from acestep.errors import AceStepError, RequestError, first_line
from acestep.gradio_ui import downloads, safety
from acestep.gradio_ui.engines import Engines
from acestep.gradio_ui.interfaces._apps import without_apps
from acestep.gradio_ui.settings import PageOptions
from acestep.gradio_ui.studio import Studio, data_folder, prepare

if TYPE_CHECKING:
    import gradio as gr
    from starlette.requests import Request
    from starlette.responses import Response

    from acestep.gradio_ui.sharing import SharedLine

_NEARBY = 20
_CLEANING = 600.0

log = logging.getLogger("acestep.page")


def serve(options: PageOptions, say: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        options: of the command line.
        say: tells the person a line.

    Raises:
        RequestError: the options do not fit, or the port is taken.
    """
    options = options.checked()
    check_port(options.server_name, options.port)
    folder = data_folder(options)
    prepare(folder)
    studio = Studio(options, Engines(project_root=options.checkpoint), folder)
    # An earlier run may have been killed in the middle of a song.
    studio.store.clear_work()
    stopped = threading.Event()
    shared = _api(studio) if options.enable_api else None
    blocks, url, public = launch(studio, shared)
    # Each song ends with a collection, which need not go through all that was imported by now.
    gc.freeze()
    say(f"acestep: the page is at {url}")
    if shared:
        say(f"acestep: the API is at {url.rstrip('/')}, its page at {url}docs")
    if public:
        say(f"acestep: and for everybody at {public}")
    elif options.share:
        say(
            "acestep: no public link: gradio's share service could not be reached; check the "
            "connection, or open the page to your network with --server-name 0.0.0.0"
        )
    if options.open_to_strangers:
        say(
            "acestep: warning: whoever can reach this address can use the page and this machine; "
            "ask for a login with --auth-username NAME --auth-password WORD"
        )
    begin(studio)
    if shared:
        shared.start()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        while not stopped.wait(_CLEANING):
            studio.clean()
            if shared:
                shared.service.store.prune()
    finally:
        signal.signal(signal.SIGTERM, before)
        if shared:
            shared.close()
        studio.close()
        blocks.close(verbose=False)


def _api(studio: Studio) -> SharedLine:
    """The HTTP API, for which FastAPI and more is imported only where it is asked for."""
    from acestep.gradio_ui.sharing import open_api

    return open_api(studio)


def check_port(server_name: str, port: int) -> None:
    """Make sure that the port can be had.

    Raises:
        RequestError: it is taken, and the message names the next free one; or the address
            is not this machine's.
    """
    problem = _bind_problem(server_name, port)
    if problem is None:
        return
    free = next(
        (
            p
            for p in range(port + 1, min(port + _NEARBY, 65536))
            if not _bind_problem(server_name, p)
        ),
        None,
    )
    if free is None:
        raise RequestError(f"cannot listen on {server_name} port {port}: {problem}")
    raise RequestError(f"port {port} is taken ({problem}); use --port {free}, which is free")


def launch(studio: Studio, shared: SharedLine | None = None) -> tuple[gr.Blocks, str, str | None]:
    """Open the page without waiting for its end.

    Args:
        studio: behind it.
        shared: the HTTP API to serve beside it.

    Returns:
        The page, its address, and with `--share` the public one.
    """
    # PyTorch is needed to name the devices, and takes as long to import as gradio does.
    probe = threading.Thread(target=describe_devices, daemon=True)
    probe.start()
    from acestep.gradio_ui.interfaces import page

    probe.join()
    settings = {**_settings(studio), **page.looks()}

    async def opened() -> tuple[gr.Blocks, str, str | None]:
        # Within a running loop, because gradio makes a loop of its own for each lock that
        # it creates without one, and never closes it.
        with without_apps():
            blocks = page.build(studio)
            blocks.queue(max_size=4 * studio.limits.waiting, default_concurrency_limit=4)
        # Of a link that fails gradio prints a page of advice; `serve` says it in one line.
        with contextlib.redirect_stdout(io.StringIO()):
            app, url, public = blocks.launch(**settings)
        if shared:
            shared.place_beside(app)
        return blocks, url, public

    return asyncio.run(opened())


def _settings(studio: Studio) -> dict[str, Any]:
    """How gradio is to serve the page."""
    from starlette.middleware import Middleware
    from starlette.routing import Route

    options, limits = studio.options, studio.limits
    credentials = None
    if options.auth_username and options.auth_password:
        credentials = safety.Credentials(options.auth_username, options.auth_password, limits)
    hosts = () if options.share else safety.loopback_names(options.server_name)
    songs = Route("/songs/{song}/{name}", _song_route(studio), methods=["GET", "HEAD"])
    return {
        "server_name": options.server_name,
        "server_port": options.port,
        "share": options.share,
        "auth": credentials,
        "prevent_thread_lock": True,
        "quiet": True,
        "max_file_size": limits.upload_bytes,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "app_kwargs": {
            "middleware": [Middleware(safety.Guard, limits=limits, hosts=hosts)],
            "routes": [songs],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    }


def begin(studio: Studio) -> None:
    """Load what the options say at start, before any visitor's job."""
    options = studio.options
    if not (options.init_service or options.init_llm):
        return

    def work(job: Any) -> list[str]:
        if options.init_service:
            studio.engines.load(studio.choice, job.report)
        if options.init_llm:
            studio.engines.load_planner(studio.choice, job.report)
        return studio.engines.lines()

    studio.line.submit("0" * 32, "here", "load", studio.choice.model, work)


def _song_route(studio: Studio) -> Callable[[Request], Response]:
    """The address of a song's files: only its owner's, only those of a song."""
    from starlette.responses import FileResponse, PlainTextResponse

    def endpoint(request: Request) -> Response:
        who = safety.visitor(request.cookies, "")
        if not _signed_in(request):
            return PlainTextResponse("there is no such song of yours", 404)
        song, name = request.path_params["song"], request.path_params["name"]
        try:
            path = downloads.file_of(studio.store, who, song, name)
        except (OSError, AceStepError) as error:
            log.warning("a song could not be given as %s: %s", name, first_line(error))
            return PlainTextResponse("the song cannot be written as that kind of file", 500)
        if path is None:
            return PlainTextResponse("there is no such song of yours", 404)
        return FileResponse(path, headers={"cache-control": "private, max-age=3600"})

    return endpoint


def _signed_in(request: Request) -> bool:
    """Whether gradio knows the one who asks, where it asks for a password at all."""
    app = request.app
    if app.auth is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(app.tokens.get(request.cookies.get(name, "")) for name in names)


def _bind_problem(server_name: str, port: int) -> str | None:
    host = server_name.strip("[]")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as test:
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            test.bind(address)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None
