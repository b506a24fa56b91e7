"""What every request passes first: names, origins, sizes, slow senders, headers; and the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from acestep.server.options import MIB, ServerOptions

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Seen = Callable[[str, str, int, float], None]

log = logging.getLogger("acestep.server")
access = logging.getLogger("acestep.server.access")

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
_CHAT = "/chat/completions"
_FORM = "multipart/form-data"


class Guard:
    """Middleware around the whole application.

    Args:
        app: what to guard.
        options: names, origins and limits.
        seen: told method, route, status and seconds of every request.
    """

    def __init__(self, app: App, options: ServerOptions, seen: Seen) -> None:
        self.app, self.options, self.seen = app, options, seen

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request; whatever happens, it is answered and noted."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        began, sender = time.monotonic(), _Sender(send)
        body = _Body(receive, self._most(scope), self.options)
        try:
            headers = _headers(scope)
            if refusal := self._refusal(scope, headers, body.most):
                await answer(sender, *refusal)
            else:
                await self.app(scope, body, sender)
        except _TooMuch:
            await _end(sender, 413, f"the request is larger than {body.most // MIB} MiB")
        except _TooSlow:
            await _end(sender, 408, "the rest of the request did not come in time")
        except Exception:
            # Nothing of what happened reaches the client; the number finds it in the log.
            log.exception("request %s failed", sender.number)
            await _end(
                sender, 500, f"something went wrong inside; the log has it as {sender.number}"
            )
        finally:
            self._note(scope, sender, body, time.monotonic() - began)

    def _refusal(
        self, scope: Message, headers: Mapping[str, str], most: int
    ) -> tuple[int, str] | None:
        limits, hosts = self.options.limits, self.options.hosts
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > limits.head_bytes or len(scope["headers"]) > limits.head_count:
            return 431, "the request has too many headers"
        if hosts and _hostname(headers.get("host", "")) not in hosts:
            return 421, "this service is served under another name"
        if scope["method"] not in _SAFE and not self._own(headers):
            return 403, "this web site may not use the service; start it with --allow-origin"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            return 400, "the length of the request is no number"
        if len(length) > 15 or int(length) > most:
            return 413, f"the request is larger than {most // MIB} MiB"
        return None

    def _own(self, headers: Mapping[str, str]) -> bool:
        """Whether a request comes from no web site, from this service's, or from a friend's."""
        origin = headers.get("origin")
        if origin is None or origin in self.options.origins or "*" in self.options.origins:
            return True
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()

    def _most(self, scope: Message) -> int:
        limits = self.options.limits
        if scope["path"].rstrip("/").endswith(_CHAT):
            return limits.chat_bytes
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if kinds and kinds[0].decode("latin-1").lower().startswith(_FORM):
            # Two files, and the form around them.
            return 2 * limits.upload_bytes + limits.body_bytes
        return limits.body_bytes

    def _note(self, scope: Message, sender: _Sender, body: _Body, seconds: float) -> None:
        """One line of JSON: no query, which names results, no body, no key."""
        route = getattr(scope.get("route"), "path", "") or "other"
        self.seen(scope["method"], route, sender.status, seconds)
        line = {
            "id": sender.number,
            "method": scope["method"],
            "route": route,
            "status": sender.status,
            "ms": round(1000 * seconds, 1),
            "bytes_in": body.taken,
            "bytes_out": sender.sent,
            "client": (scope.get("client") or ("-",))[0],
        }
        access.info(json.dumps(line))


class _TooMuch(Exception):  # noqa: N818 (ends a request, is no fault)
    """The body passed its limit."""


class _TooSlow(Exception):  # noqa: N818
    """The body did not come in time."""


class _Body:
    """A request's body, counted, with a limit on each wait for more of it and on all of them."""

    def __init__(self, receive: Receive, most: int, options: ServerOptions) -> None:
        self._receive, self.most, self._limits = receive, most, options.limits
        self.taken, self._whole = 0, False
        self._end = time.monotonic() + options.limits.body_time

    async def __call__(self) -> Message:
        if self._whole:
            # Only the end of the connection is left to come, and it may take hours.
            return await self._receive()
        patience = min(self._limits.body_pause, self._end - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(patience, 0.0))
        except TimeoutError:
            raise _TooSlow from None
        self.taken += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self.taken > self.most:
            raise _TooMuch
        return message


class _Sender:
    """A response on its way out, with the service's headers added."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.number, self.status, self.sent = secrets.token_hex(6), 0, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            headers += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            message["headers"] = [*headers, (b"x-request-id", self.number.encode())]
        self.sent += len(message.get("body", b""))
        await self._send(message)


async def answer(send: Send, status: int, text: str) -> None:
    """An error, as the API tells it, after which the connection is closed."""
    body = json.dumps({"detail": text}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _end(sender: _Sender, status: int, text: str) -> None:
    """An error, where nothing was answered yet and somebody is there to hear it."""
    if not sender.status:
        with contextlib.suppress(OSError):
            await answer(sender, status, text)


def _headers(scope: Message) -> dict[str, str]:
    return {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
