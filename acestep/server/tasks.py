"""The task API: ask for songs, ask what became of them, fetch them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response

from acestep.server import bodies, metrics
from acestep.server.asking import NO_QUERY
from acestep.server.bodies import BodyError
from acestep.server.door import Refusal, admitted, check_header, ended, put_in, understand
from acestep.server.fields import squashed
from acestep.server.sounds import result_name
from acestep.server.store import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, Task

if TYPE_CHECKING:
    from starlette.requests import Request

    from acestep.server.service import Service

MEDIA = {
    "mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg",
    "opus": "audio/ogg", "m4a": "audio/mp4", "aac": "audio/aac",
}  # fmt: skip
"""Kinds of file, as HTTP calls them."""

_RUNNING, _DONE, _FAILED = 0, 1, 2
_ENVIRONMENT = "development"


class TaskApi:
    """The endpoints; each takes a request and answers it.

    Args:
        service: what they ask.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    async def release(self, request: Request) -> Response:
        """Put a song into the line."""
        body = await admitted(self.service, request)
        try:
            asked = understand(body.values)
        except Refusal:
            body.discard()
            raise
        task, place = await put_in(self.service, request, asked, body.files)
        told: dict[str, Any] = {"task_id": task.id, "status": QUEUED, "queue_position": place}
        if asked.notices:
            told["notices"] = list(asked.notices)
        return wrapped(told)

    async def query(self, request: Request) -> Response:
        """What became of tasks."""
        body = await admitted(self.service, request)
        body.discard()
        given = _one(body.values, "task_id_list", "task_ids", "task_id")
        try:
            ids = bodies.lists("task_id_list", given, self.service.limits.asked_at_once)
        except BodyError as error:
            raise Refusal(400, str(error)) from None
        return wrapped(await run_in_threadpool(lambda: [self._item(one) for one in ids]))

    async def cancel(self, request: Request) -> Response:
        """Stop a task, or have it not begin."""
        body = await admitted(self.service, request)
        body.discard()
        task_id = _one(body.values, "task_id")
        if not isinstance(task_id, str):
            raise Refusal(400, "task_id is no id")
        state = await run_in_threadpool(self.service.line.stop, task_id)
        if state is None:
            raise Refusal(404, "there is no such task")
        return wrapped({"task_id": task_id, "status": state})

    async def format_input(self, request: Request) -> Response:
        """Have prompt and lyrics rewritten."""
        return await self._described(request, "format")

    async def random_sample(self, request: Request) -> Response:
        """Have a song invented."""
        return await self._described(request, "sample")

    async def models(self, request: Request) -> Response:
        """Which checkpoints can be asked for."""
        check_header(self.service, request)
        catalogue = self.service.catalogue
        return wrapped(
            {
                "models": [
                    {"name": name, "is_default": name == catalogue.default}
                    for name in catalogue.names
                ],
                "default_model": catalogue.default,
            }
        )

    async def stats(self, request: Request) -> Response:
        """How much there is to do."""
        check_header(self.service, request)
        store = self.service.store
        counts = await run_in_threadpool(store.counts)
        jobs = {"total": sum(counts.values()), **counts}
        return wrapped(
            {
                "jobs": jobs,
                "queue_size": counts[QUEUED],
                "queue_maxsize": self.service.limits.waiting,
                "avg_job_seconds": round(await run_in_threadpool(store.mean_seconds), 3),
            }
        )

    async def audio(self, request: Request) -> Response:
        """A result; who knows its name may have it, as a browser's player must."""
        check_header(self.service, request, needed=False)
        # Some clients put the whole address of a result where its name belongs.
        name = result_name(request.query_params.get("path", ""))
        path = await run_in_threadpool(self.service.store.result, name)
        if path is None:
            raise Refusal(404, "there is no such result, or it has been removed")
        headers = {"cache-control": "private, max-age=3600"}
        return FileResponse(path, media_type=MEDIA[path.suffix[1:]], headers=headers)

    async def health(self, request: Request) -> Response:
        """That the service answers."""
        return wrapped({"status": "ok", "service": "ACE-Step API", "version": "1.0"})

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        check_header(self.service, request)
        text = await run_in_threadpool(self.service.metrics.text)
        return Response(text, headers={"content-type": metrics.CONTENT_TYPE})

    async def _described(self, request: Request, kind: str) -> Response:
        body = await admitted(self.service, request)
        body.discard()
        names = {"paramobj": "metas", "temperature": "lm_temperature"}
        values = {names.get(squashed(name), name): value for name, value in body.values.items()}
        if kind == "sample":
            values = {"sample_query": NO_QUERY, **values}
        asked = understand(values)
        task, _ = await put_in(self.service, request, asked, {}, kind=kind, attended=True)
        task = await ended(self.service, request, task, give_up=True)
        if task.state != SUCCEEDED:
            raise Refusal(500, task.error or "it was cancelled")
        return wrapped(task.result)

    def _item(self, task_id: str) -> dict[str, Any]:
        task = self.service.store.get(task_id)
        if task is None:
            error = "there is no such task, or it is long over"
            return _outcome(task_id, _FAILED, [_empty(_FAILED, error=error)])
        if task.state == SUCCEEDED and task.removed is None:
            return _outcome(task_id, _DONE, _songs(task))
        if task.state in (QUEUED, RUNNING):
            fraction, stage = self.service.line.progress(task)
            place = self.service.line.place(task)
            item = _empty(_RUNNING, task.created, progress=round(fraction, 4), stage=stage)
            return {
                **_outcome(task_id, _RUNNING, [item]),
                "progress_text": f"place {place} in the queue" if place else stage,
            }
        return _outcome(task_id, _FAILED, [_empty(_FAILED, task.created, error=_why(task))])


def wrapped(data: Any) -> JSONResponse:
    """An answer in the API's envelope."""
    stamp = int(time.time() * 1000)
    return JSONResponse(
        {"data": data, "code": 200, "error": None, "timestamp": stamp, "extra": None}
    )


def address_of(name: str) -> str:
    """Where a result is fetched."""
    return f"/v1/audio?path={quote(name, safe='')}"


def _outcome(task_id: str, status: int, items: list[dict[str, Any]]) -> dict[str, Any]:
    # The API has the result as text.
    return {"task_id": task_id, "status": status, "result": json.dumps(items, ensure_ascii=False)}


def _songs(task: Task) -> list[dict[str, Any]]:
    made = task.result or {}
    if task.kind != "song":
        return [_empty(_DONE, task.created, **made)]
    shared = {
        name: made[name]
        for name in ("prompt", "lyrics", "metas", "generation_info", "seed_value", "lm_model",
                     "dit_model", "notices")
    }  # fmt: skip
    return [
        {
            **_empty(_DONE, task.created),
            **shared,
            "file": address_of(song["file"]),
            "seed": str(song["seed"]),
            "seconds": song["seconds"],
        }
        for song in made["songs"]
    ]


def _empty(status: int, created: float | None = None, **more: Any) -> dict[str, Any]:
    return {
        "file": "",
        "wave": "",
        "status": status,
        "create_time": int(time.time() if created is None else created),
        "env": _ENVIRONMENT,
        **more,
    }


def _why(task: Task) -> str:
    if task.removed is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(task.removed))
        return f"it was made, and its files were removed on {when}"
    return task.error or {FAILED: "it failed", CANCELLED: "cancelled"}[task.state]


def _one(values: dict[str, Any], *names: str) -> Any:
    spelled = {squashed(name): value for name, value in values.items()}
    return next((spelled[squashed(name)] for name in names if squashed(name) in spelled), None)
