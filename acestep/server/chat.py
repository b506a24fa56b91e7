"""Chat completions: a song as the answer to a message, whole or in pieces while it is made."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from acestep.server import words
from acestep.server.bodies import BodyError
from acestep.server.catalogue import PREFIX
from acestep.server.door import STOPPING, Refusal, admitted, check_header, ended, put_in, understand
from acestep.server.store import SUCCEEDED, Task
from acestep.server.tasks import MEDIA

if TYPE_CHECKING:
    from starlette.requests import Request

    from acestep.server.service import Service

_END = "data: [DONE]\n\n"


class ChatApi:
    """The endpoints that OpenAI's clients know.

    Args:
        service: what they ask.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    async def models(self, request: Request) -> Response:
        """Which checkpoints can be asked for."""
        check_header(self.service, request)
        return JSONResponse(
            {"object": "list", "data": [_model(name) for name in self.service.catalogue.names]}
        )

    async def complete(self, request: Request) -> Response:
        """Make a song of the last message."""
        service = self.service
        body = await admitted(service, request)
        body.discard()
        try:
            said = words.said(body.values)
        except BodyError as error:
            raise Refusal(error.status, str(error)) from None
        asked = understand(said.values, batch_size=1)
        files = await run_in_threadpool(self._written, said.sounds)
        task, _ = await put_in(service, request, asked, files, attended=True)
        answer = _Answer(task, PREFIX + service.catalogue.name(asked.model))
        if said.stream:
            return StreamingResponse(
                self._pieces(request, task, answer, said.give_up),
                media_type="text/event-stream",
                headers={"cache-control": "no-store", "x-accel-buffering": "no"},
            )
        task = await ended(service, request, task, give_up=said.give_up)
        if task.state != SUCCEEDED:
            raise Refusal(500, task.error or "it was cancelled")
        return JSONResponse(await run_in_threadpool(answer.whole, task, self._audio))

    def _written(self, sounds: dict[str, bytes]) -> dict[str, Path]:
        files = {}
        for name, content in sounds.items():
            files[name] = self.service.store.new_upload()
            files[name].write_bytes(content)
        return files

    async def _pieces(
        self, request: Request, task: Task, answer: _Answer, give_up: bool
    ) -> AsyncIterator[str]:
        """The answer as server-sent events, with signs of life while music is made."""
        line, over = self.service.line, False
        try:
            yield answer.piece({"role": "assistant", "content": ""})
            while not await line.ended_within(task.id, self.service.limits.heartbeat):
                if line.lost(task.id):
                    break
                fraction, stage = line.progress(self.service.store.get(task.id) or task)
                yield answer.piece(
                    {"content": ""}, progress={"fraction": round(fraction, 4), "stage": stage}
                )
            over = True
            found = self.service.store.get(task.id) or task
            if found.state != SUCCEEDED:
                problem = found.error or STOPPING
                yield f"data: {json.dumps(error_of(500, problem))}\n\n"
            else:
                content = content_of(found)
                yield answer.piece({"content": content})
                yield answer.piece({"audio": await run_in_threadpool(self._audio, found)})
                yield answer.piece({}, finish="stop")
            yield _END
        finally:
            if give_up and not over:
                line.stop(task.id)

    def _audio(self, task: Task) -> list[dict[str, Any]]:
        """The songs as the addresses that hold them."""
        found = []
        for song in (task.result or {})["songs"]:
            path = self.service.store.result(song["file"])
            if path is not None:
                data = base64.b64encode(path.read_bytes()).decode()
                url = f"data:{MEDIA[path.suffix[1:]]};base64,{data}"
                found.append({"type": "audio_url", "audio_url": {"url": url}})
        return found


class _Answer:
    """The parts of an answer that stay the same."""

    def __init__(self, task: Task, model: str) -> None:
        self._id, self._model, self._created = f"chatcmpl-{task.id}", model, int(time.time())

    def whole(self, task: Task, audio: Any) -> dict[str, Any]:
        content = content_of(task)
        message = {"role": "assistant", "content": content, "audio": audio(task)}
        # Counted in characters by four, as is usual where nobody counts tokens.
        said, answered = len(json.dumps(task.asked)) // 4, len(content) // 4
        return {
            **self._head("chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": said,
                "completion_tokens": answered,
                "total_tokens": said + answered,
            },
        }

    def piece(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        piece = {**self._head("chat.completion.chunk"), "choices": [choice], **more}
        return f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def content_of(task: Task) -> str:
    """What is told of a song, as Markdown."""
    made = task.result or {}
    metas = made["metas"]
    rows = {
        "Caption": made["prompt"],
        "BPM": metas["bpm"],
        "Duration": f"{metas['duration']:g} s",
        "Key": metas["keyscale"],
        "Time signature": metas["timesignature"],
        "Language": made["language"],
        "Seed": made["seed_value"],
    }
    told = "\n".join(f"**{name}:** {value}  " for name, value in rows.items() if value)
    notices = "".join(f"\n> {notice}" for notice in made["notices"])
    lyrics = f"\n\n## Lyrics\n{made['lyrics']}" if made["lyrics"] else ""
    return f"## Metadata\n{told}{notices}{lyrics}"


def error_of(status: int, text: str) -> dict[str, Any]:
    """An error in OpenAI's form and in the task API's."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "detail": text,
        "error": {"message": text, "type": kind, "param": None, "code": None},
    }


def _model(name: str) -> dict[str, Any]:
    return {
        "id": f"{PREFIX}{name}",
        "object": "model",
        "name": f"ACE-Step {name}",
        "created": 0,
        "owned_by": "acestep",
        "input_modalities": ["text", "audio"],
        "output_modalities": ["audio", "text"],
    }
