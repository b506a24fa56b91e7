"""The application: both APIs' addresses, their document, and what every request passes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from acestep import __version__
from acestep.server import document
from acestep.server.chat import ChatApi, error_of
from acestep.server.door import Refusal
from acestep.server.guard import Guard
from acestep.server.options import ServerOptions
from acestep.server.service import Service
from acestep.server.tasks import TaskApi

Endpoint = Callable[[Request], Awaitable[Response]]

CHAT_ROOT = "/openai"
"""Below it are chat completions alone, `/openai/v1`, whoever asks."""


def create_app(options: ServerOptions, service: Service | None = None) -> FastAPI:
    """The whole service as an ASGI application; it works while its lifespan lasts.

    Args:
        options: see `ServerOptions`.
        service: one to use, in place of one of its own; who gives it starts and closes it.

    Raises:
        RequestError: the options do not fit, or the folder is in use.
    """
    options = options.checked()
    behind = service or Service(options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if service is None:
            behind.start()
        yield
        if service is None:
            # The loop goes on, for connections that wait for what runs.
            await run_in_threadpool(behind.close)

    app = FastAPI(
        title="ACE-Step API", version=__version__, lifespan=lifespan, description=document.ABOUT,
        responses=document.ERRORS, redoc_url=None,
    )  # fmt: skip
    app.state.service = behind
    _add_routes(app, TaskApi(behind), ChatApi(behind))
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _refused)
    if options.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(options.origins), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    app.add_middleware(Guard, options=options, seen=behind.metrics.request)
    return app


def _add_routes(app: FastAPI, tasks: TaskApi, chat: ChatApi) -> None:
    async def models(request: Request) -> Response:
        return await (chat.models if is_openai(request) else tasks.models)(request)

    models.__doc__ = "Which checkpoints can be asked for; a client of OpenAI's gets its own list."
    posts: dict[str, Endpoint] = {
        "/release_task": tasks.release,
        "/query_result": tasks.query,
        "/cancel_task": tasks.cancel,
        "/format_input": tasks.format_input,
        "/create_random_sample": tasks.random_sample,
        "/v1/chat/completions": chat.complete,
        f"{CHAT_ROOT}/v1/chat/completions": chat.complete,
    }
    gets: dict[str, Endpoint] = {
        "/v1/models": models,
        f"{CHAT_ROOT}/v1/models": chat.models,
        "/v1/stats": tasks.stats,
        "/v1/audio": tasks.audio,
        "/health": tasks.health,
        "/metrics": tasks.metrics,
    }
    # Players ask for the head of a file first.
    app.add_api_route(
        "/v1/audio", _plain(tasks.audio), methods=["HEAD"], response_model=None,
        include_in_schema=False,
    )  # fmt: skip
    for method, endpoints in (("POST", posts), ("GET", gets)):
        for path, endpoint in endpoints.items():
            app.add_api_route(
                path, _plain(endpoint), methods=[method], response_model=None,
                summary=(endpoint.__doc__ or "").rstrip("."), name=f"{method} {path}",
                operation_id=f"{method.lower()}_{path.strip('/').replace('/', '_')}",
                openapi_extra=document.EXTRA.get(path),
            )  # fmt: skip


def _plain(endpoint: Endpoint) -> Endpoint:
    """A function of its own around a method, which is how FastAPI reads signatures best."""

    async def answered(request: Request) -> Response:
        return await endpoint(request)

    return answered


def is_openai(request: Request) -> bool:
    """Whether a request comes from one of OpenAI's own clients, which say so in a header."""
    agent = request.headers.get("user-agent", "")
    return "x-stainless-lang" in request.headers or agent.startswith(("OpenAI/", "AsyncOpenAI/"))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """An error as the API of its address tells it."""
    status = error.status if isinstance(error, Refusal) else 500
    text, headers = str(error), error.headers if isinstance(error, Refusal) else None
    if isinstance(error, HTTPException):
        status, text, headers = error.status_code, error.detail, dict(error.headers or {})
    told: dict[str, Any] = {"detail": text}
    path = request.url.path
    if is_openai(request) or path.endswith("/chat/completions") or path.startswith(CHAT_ROOT):
        told = error_of(status, text)
    return JSONResponse(told, status, headers)
