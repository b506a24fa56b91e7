"""What the two APIs share: who is let in, how a task is put into the line, how errors are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool

from acestep.errors import RequestError
from acestep.server import bodies
from acestep.server.asking import Asked
from acestep.server.bodies import Body, BodyError
from acestep.server.fields import KEY, squashed
from acestep.server.keys import in_header
from acestep.server.store import QUEUED, FullError, Task

if TYPE_CHECKING:
    from starlette.requests import Request

    from acestep.server.service import Service

STOPPING = "the service is stopping; ask again later"

_GLANCE = 0.5
_NO_KEY = "this service asks for a key; send it as Authorization: Bearer KEY"


class Refusal(Exception):  # noqa: N818 (an answer, no fault)
    """An answer other than what was asked for.

    Attributes:
        status, headers: of HTTP.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, dict(headers or {})


def address(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client is not None else "-"


def check_header(service: Service, request: Request, *, needed: bool = True) -> bool:
    """See to the key in the header.

    Args:
        needed: whether it must be there; a wrong one is refused in any case.

    Returns:
        Whether the right one is there, or none is asked for.

    Raises:
        Refusal: 401, or 429 for an address that guesses.
    """
    if not service.keys.needed:
        return True
    given = in_header(request.headers)
    if given is None:
        if needed:
            raise Refusal(401, _NO_KEY, {"www-authenticate": "Bearer"})
        return False
    _check(service, request, given)
    return True


async def admitted(service: Service, request: Request) -> Body:
    """The body of a request whose key, in header or body, is right.

    Raises:
        Refusal: the key is wrong or lacks, or the body cannot be understood.
    """
    known = check_header(service, request, needed=False)
    try:
        body = await bodies.read(request, service.store, service.limits.body_bytes)
    except BodyError as error:
        # Who has no key learns nothing of bodies.
        if not known:
            raise Refusal(401, _NO_KEY, {"www-authenticate": "Bearer"}) from None
        raise Refusal(error.status, str(error)) from None
    given = [body.values.pop(name) for name in list(body.values) if squashed(name) == squashed(KEY)]
    if not known:
        try:
            _check(service, request, given[0] if given and isinstance(given[0], str) else None)
        except Refusal:
            body.discard()
            raise
    return body


def _check(service: Service, request: Request, given: str | None) -> None:
    if service.keys.right(given):
        return
    who = address(request)
    if (wait := service.keys.seconds_to_wait(who)) > 0:
        raise Refusal(429, "too many wrong keys", {"retry-after": str(int(wait) + 1)})
    if given is None:
        raise Refusal(401, _NO_KEY, {"www-authenticate": "Bearer"})
    service.keys.note_wrong(who)
    raise Refusal(401, "the key is wrong", {"www-authenticate": "Bearer"})


async def put_in(
    service: Service,
    request: Request,
    asked: Asked,
    files: Mapping[str, Path],
    *,
    kind: str = "song",
    attended: bool = False,
) -> tuple[Task, int]:
    """Check what is asked for and put it into the line; returns the task and its place.

    Args:
        files: uploads, which go with the task.

    Raises:
        Refusal: 400 for what cannot be made, 429 where there is no room, 503 where the service
            stops and the client waits.
    """
    try:
        if service.store.counts()[QUEUED] >= service.limits.waiting:
            raise FullError("the queue is full; try again later")
        if files and service.store.uploaded() > service.limits.waiting_bytes:
            raise FullError("too many sounds wait already; try again later")
        asked = await run_in_threadpool(_checked, service, asked, files, kind)
        if attended and service.line.closed:
            raise Refusal(503, STOPPING, {"retry-after": "10"})
        return await run_in_threadpool(
            service.line.submit, address(request), kind, asked.plain(),
            attended=attended, uploads=[path.name for path in files.values()],
        )  # fmt: skip
    except FullError as error:
        _discard(files)
        raise Refusal(429, str(error), {"retry-after": str(service.seconds_to_wait)}) from None
    except RequestError as error:
        _discard(files)
        raise Refusal(400, str(error)) from None
    except BaseException:
        _discard(files)
        raise


async def ended(service: Service, request: Request, task: Task, *, give_up: bool) -> Task:
    """A task once it has ended.

    Args:
        give_up: whether it is cancelled when its client goes away.

    Raises:
        Refusal: it is cancelled because the client went away, or the service stops before it.
    """
    while not await service.line.ended_within(task.id, _GLANCE):
        if give_up and await request.is_disconnected():
            await run_in_threadpool(service.line.stop, task.id)
            raise Refusal(499, "the client went away")
        if service.line.lost(task.id):
            break
    found = service.store.get(task.id) or task
    if found.ended is None:
        raise Refusal(503, STOPPING, {"retry-after": "10"})
    return found


def understand(values: Mapping[str, Any], **defaults: Any) -> Asked:
    """See `asking.understood`.

    Raises:
        Refusal: 400.
    """
    from acestep.server.asking import understood

    try:
        return understood(values, **defaults)
    except RequestError as error:
        raise Refusal(400, str(error)) from None


def _checked(service: Service, asked: Asked, files: Mapping[str, Path], kind: str) -> Asked:
    limits, params = service.limits, asked.params
    problem = bodies.too_long(
        [
            ("prompt", params.get("caption"), limits.prompt_chars),
            ("query", asked.query, limits.prompt_chars),
            ("lyrics", params.get("lyrics"), limits.lyrics_chars),
        ]
    )
    if problem:
        raise RequestError(problem)
    service.catalogue.name(asked.model)
    planner = service.catalogue.planner(asked.lm_model)
    sounds = {name: str(service.sounds.named(name, text)) for name, text in asked.sounds.items()}
    for path in files.values():
        service.sounds.check(path)
    sounds.update({name: str(path) for name, path in files.items()})
    asked = replace(asked, sounds=sounds, lm_model=planner)
    # What is only described needs no words of its own.
    (asked if kind == "song" else replace(asked, query="anything")).check()
    return asked


def _discard(files: Mapping[str, Path]) -> None:
    for path in files.values():
        path.unlink(missing_ok=True)
