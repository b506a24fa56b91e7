"""Serves the application with uvicorn: one or two ports, heads in time, a graceful end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from acestep.device import resolve
from acestep.errors import RequestError
from acestep.gpu_config import check_ahead
from acestep.server.app import CHAT_ROOT, create_app
from acestep.server.options import Limits, ServerOptions

Say = Callable[[str], None]

_NEARBY = 20
_CHAT_PATHS = "/v1/"


def serve(options: ServerOptions, say: Say) -> None:
    """Serve until the process is told to end.

    Args:
        options: see `ServerOptions`.
        say: tells the person a line.

    Raises:
        DeviceError: a device is absent, on which every task would fail.
        RequestError: the options do not fit, a port is taken, or the folder is in use.
    """
    options = options.checked()
    # With Ray the devices are of other machines, whose workers say what they lack.
    for device in () if options.ray else options.devices:
        policy = resolve(device, quantization=options.quantize, engine=options.engine)
        if options.ahead:
            check_ahead(policy)
    sockets = [listening(options.host, port) for port in (options.port, options.chat_port) if port]
    try:
        app = create_app(options)
        _log_to_stderr()
        apps: list[Any] = [app, _ChatOnly(app)][: len(sockets)]
        servers = [_Server(_config(one, options)) for one in apps]
        where = [f"http://{options.host}:{one.getsockname()[1]}" for one in sockets]
        say(f"acestep: the API is at {where[0]}, its page at {where[0]}/docs")
        for there in where[1:]:
            say(f"acestep: chat completions are at {there}/v1")
        asyncio.run(_serve(servers, sockets, app.state.service.line.close))
    finally:
        for one in sockets:
            one.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        RequestError: the port is taken, and the message names the next free one; or the address
            is not this machine's.
    """
    try:
        return _bound(host, port)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
    for other in range(port + 1, min(port + _NEARBY, 65536)):
        try:
            _bound(host, other).close()
        except OSError:
            continue
        raise RequestError(f"port {port} is taken ({problem}); use --port {other}, which is free")
    raise RequestError(f"cannot listen on {host} port {port}: {problem}")


def _bound(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(512)
    except BaseException:
        made.close()
        raise
    return made


def _config(app: Any, options: ServerOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=_protocol(options.limits), ws="none", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=int(options.limits.grace),
        h11_max_incomplete_event_size=2 * options.limits.head_bytes,
        # The second port's application is the first's, and lives as long.
        lifespan="off" if isinstance(app, _ChatOnly) else "on",
    )  # fmt: skip


async def _serve(
    servers: list[_Server], sockets: list[socket.socket], close: Callable[[bool], None]
) -> None:
    """Serve until a signal; what runs may end then, but for a second one."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        close(servers[0].should_exit)
        for server in servers:
            server.should_exit = True

    with _on_signals(loop, end):
        await asyncio.gather(
            *(one.serve([where]) for one, where in zip(servers, sockets, strict=True))
        )


@contextmanager
def _on_signals(loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> Iterator[None]:
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    for kind in kinds:
        signal.signal(kind, lambda *_: loop.call_soon_threadsafe(end))
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _Server(uvicorn.Server):
    """A server that leaves signals to who runs several."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _ChatOnly:
    """The application as a port of its own for chat completions sees it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_CHAT_PATHS):
            path = CHAT_ROOT + scope["path"]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self.app(scope, receive, send)


def _protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol, which hangs up on who takes too long for the head of a request."""

    class Protocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()
            elif self._waiting is None:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._waiting = self.loop.call_later(limits.head_time, self._hang_up)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _hang_up(self) -> None:
            self._waiting = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Protocol


def _log_to_stderr() -> None:
    """The service's own log and its access log, a line of JSON a request."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name in ("acestep.server", "uvicorn.error"):
        log = logging.getLogger(name)
        if not log.handlers:
            log.addHandler(handler)
        log.setLevel(logging.INFO if name == "acestep.server" else logging.WARNING)
        log.propagate = False
