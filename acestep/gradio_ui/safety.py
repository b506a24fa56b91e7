"""Who a visitor is, and what a request may ask of the server before gradio sees it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from acestep.gradio_ui.limits import MIB, Limits
from acestep.gradio_ui.settings import LOOPBACK

COOKIE = "acestep_visitor"
_COOKIE_AGE = 365 * 86400

# Everything the page loads is its own; the browser refuses the rest. Gradio's front end
# is built with inline scripts, and shows uploads through blob addresses.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; base-uri 'self'; form-action 'self'; object-src 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}

# What the page and the API use of gradio; the rest of its routes is not served.
_EXACT = frozenset(
    [
        "/",
        "/config",
        "/login",
        "/logout",
        "/theme.css",
        "/favicon.ico",
        "/manifest.json",
        "/robots.txt",
    ]
)
_PREFIXES = ("/assets/", "/static/", "/svelte/", "/songs/")
_API_EXACT = frozenset(
    [
        "info",
        "startup-events",
        "app_id",
        "login_check",
        "user",
        "upload",
        "upload_progress",
        "cancel",
        "reset",
        "queue/join",
        "queue/data",
        "queue/status",
        "component_server",
        "theme.css",
    ]
)
_API_PREFIXES = ("heartbeat/", "call/", "file=")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

log = logging.getLogger("acestep.page")


def same(given: str | None, expected: str) -> bool:
    """Compare secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest((given or "").encode(), expected.encode())


class Credentials:
    """The one name and password that open the page; called as gradio's `auth`.

    Args:
        username, password: both must match.
        limits: how many wrong answers are taken in which time.
    """

    def __init__(self, username: str, password: str, limits: Limits | None = None) -> None:
        self._username, self._password = username, password
        self._limits = limits or Limits()
        self._wrong: deque[float] = deque()
        self._lock = threading.Lock()

    def __call__(self, username: str, password: str) -> bool:
        """Whether both are right; after too many wrong answers nobody is let in for a while."""
        limits = self._limits
        with self._lock:
            now = time.monotonic()
            while self._wrong and now - self._wrong[0] > limits.sign_in_window:
                self._wrong.popleft()
            blocked = len(self._wrong) >= limits.sign_in_tries
            # Both are compared whatever the first gives.
            right = same(username, self._username) & same(password, self._password)
            if not right:
                self._wrong.append(now)
        if blocked or not right:
            log.warning("sign-in refused%s", ": too many wrong answers" if blocked else "")
        return right and not blocked


def visitor(cookies: Mapping[str, str], fallback: str) -> str:
    """The name under which a visitor's songs are kept: 32 hexadecimal digits.

    It is a digest, so that who reads the folders still cannot pose as the visitor.

    Args:
        cookies: of the request.
        fallback: identifies a client that keeps no cookies.
    """
    text = cookies.get(COOKIE) or f"without a cookie: {fallback}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def api_key(headers: Mapping[str, str]) -> str:
    """The key that an API client sent: `X-API-Key`, or `Authorization: Bearer`."""
    if key := headers.get("x-api-key"):
        return key
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def served(path: str) -> bool:
    """Whether the page needs this address; every other is answered as not found."""
    if path in _EXACT or path.startswith(_PREFIXES):
        return True
    if not path.startswith("/gradio_api/"):
        return False
    rest = path.removeprefix("/gradio_api/").rstrip("/")
    return rest in _API_EXACT or rest.startswith(_API_PREFIXES)


class Guard:
    """Middleware around the whole page: addresses, hosts, sizes, slow senders, headers.

    Args:
        app: what to guard.
        limits: of bodies.
        hosts: names under which the page may be asked for; empty takes any. A page on
            loopback takes only loopback's names, so that no web site can reach it by
            pointing its own name there.
    """

    def __init__(self, app: App, limits: Limits, hosts: Iterable[str] = ()) -> None:
        self.app, self.limits, self.hosts = app, limits, frozenset(hosts)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            await _answer(send, *refusal)
            return
        most = self._most(scope["path"])
        body = _Body(receive, most, self.limits.body_pause)
        sender = _Sender(send, _new_cookie(scope, headers), body)
        try:
            await self.app(scope, body, sender)
        except _TooMuch:
            if not sender.started:
                await _answer(send, 413, f"the request is larger than {most // MIB} MiB")
        except Exception:
            # Whoever reads an upload raises where its sender is gone.
            if not body.abandoned:
                raise
            if not sender.started:
                await _answer(send, 408, "the request stopped in the middle")

    def _refusal(self, scope: Message, headers: Mapping[str, str]) -> tuple[int, str] | None:
        if self.hosts and _hostname(headers.get("host", "")) not in self.hosts:
            return 421, "this page is served under another name"
        if not served(scope["path"]):
            return 404, "there is nothing here"
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "the length of the request is no number"
        most = self._most(scope["path"])
        if int(length) > most:
            return 413, f"the request is larger than {most // MIB} MiB"
        return None

    def _most(self, path: str) -> int:
        upload = path.rstrip("/") == "/gradio_api/upload"
        # The form around an uploaded file takes a little room of its own.
        return self.limits.upload_bytes + MIB if upload else self.limits.body_bytes


def loopback_names(server_name: str) -> tuple[str, ...]:
    """The names to accept for a page on loopback; none in particular elsewhere."""
    return LOOPBACK if server_name in LOOPBACK else ()


class _TooMuch(Exception):  # noqa: N818 (ends a request, is no fault)
    """The body passed its limit."""


class _Body:
    """A request's body, counted, with a limit on each wait for more of it."""

    def __init__(self, receive: Receive, most: int, pause: float) -> None:
        self._receive, self._most, self._pause = receive, most, pause
        self._taken, self._whole = 0, False
        self.abandoned = False

    async def __call__(self) -> Message:
        if self._whole:
            # Only the end of the connection is left to come, and it may take hours.
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._pause)
        except TimeoutError:
            log.warning("a client stopped in the middle of a request")
            self.abandoned = True
            return {"type": "http.disconnect"}
        self._taken += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._taken > self._most:
            raise _TooMuch
        return message


class _Sender:
    """A response on its way out, with the page's headers added."""

    def __init__(self, send: Send, cookie: str | None, body: _Body) -> None:
        self._send, self._cookie, self._body = send, cookie, body
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", []))
            headers += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            if self._cookie:
                headers.append((b"set-cookie", self._cookie.encode()))
            if self._body.abandoned:
                # What may still come would be read as the next request.
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        await self._send(message)


def _new_cookie(scope: Message, headers: Mapping[str, str]) -> str | None:
    """A name for a visitor who has none, given with the page itself."""
    if scope["path"] != "/" or scope["method"] != "GET":
        return None
    try:
        if COOKIE in SimpleCookie(headers.get("cookie", "")):
            return None
    except CookieError:
        log.warning("a client sent cookies that cannot be read")
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    value = secrets.token_urlsafe(24)
    return f"{COOKIE}={value}; Path=/; Max-Age={_COOKIE_AGE}; HttpOnly; SameSite=Lax{secure}"


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
