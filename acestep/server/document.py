"""The OpenAPI document's parts: what each address takes and answers."""

from __future__ import annotations

from typing import Any

from acestep.server.fields import KEY, UPLOADS, schema

ABOUT = (
    "Songs by ACE-Step 1.5. Ask with `POST /release_task`, look with `POST /query_result`, fetch "
    "with `GET /v1/audio`; or let one connection do it all: `POST /v1/chat/completions`. Names "
    "may be written `key_scale`, `keyScale` or `keyscale`."
)

_DETAIL = {
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"detail": {"type": "string"}}}
        }
    }
}
_MEANINGS = {
    400: "It cannot be made as it was asked for; `detail` says why.",
    401: "The key lacks or is wrong.",
    404: "There is no such thing.",
    413: "It is too large.",
    415: "It is of a kind that is not taken.",
    429: "The queue is full, or too many wrong keys came; `Retry-After` says for how long.",
    500: "It failed.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, **_DETAIL} for status, meaning in _MEANINGS.items()
}
"""What may be answered everywhere."""

_TEXT: dict[str, Any] = {"type": "string"}
_KEYED = {KEY: {"type": "string", "description": "the key, where no header is sent"}}


def _body(properties: dict[str, Any], *required: str, forms: bool = True) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "object", "properties": {**properties, **_KEYED}}
    if required:
        made["required"] = list(required)
    kinds = ["application/json", *(["application/x-www-form-urlencoded"] if forms else [])]
    return {
        "requestBody": {"content": {kind: {"schema": made} for kind in kinds}, "required": True}
    }


def _release() -> dict[str, Any]:
    plain = schema()
    files = {
        name: {"type": "string", "format": "binary", "description": f"audio; also: {also}"}
        for name, also in UPLOADS.items()
    }
    with_files = {**plain, "properties": {**plain["properties"], **files}}
    kinds = {
        "application/json": plain,
        "application/x-www-form-urlencoded": plain,
        "multipart/form-data": with_files,
    }
    content = {kind: {"schema": one} for kind, one in kinds.items()}
    return {"requestBody": {"content": content, "required": True}}


def _chat() -> dict[str, Any]:
    sound = {"type": "object", "properties": {"data": _TEXT, "format": _TEXT}, "required": ["data"]}
    part = {
        "type": "object",
        "properties": {
            "type": {"enum": ["text", "input_audio"]}, "text": _TEXT, "input_audio": sound,
        },
        "required": ["type"],
    }  # fmt: skip
    message = {
        "type": "object",
        "properties": {
            "role": {"enum": ["user", "system", "assistant"]},
            "content": {"anyOf": [_TEXT, {"type": "array", "items": part}]},
        },
        "required": ["role", "content"],
    }
    config = {
        "type": "object",
        "properties": {
            "duration": {"type": "number"}, "bpm": {"type": "integer"}, "vocal_language": _TEXT,
            "instrumental": {"type": "boolean"}, "format": _TEXT, "key_scale": _TEXT,
            "time_signature": _TEXT,
        },
    }  # fmt: skip
    own = {
        "messages": {"type": "array", "items": message, "minItems": 1},
        "stream": {"type": "boolean", "default": False},
        "audio_config": config,
        "temperature": {"type": "number"},
        "top_p": {"type": "number"},
        "cancel_on_disconnect": {"type": "boolean", "default": False},
    }
    return _body({**schema()["properties"], **own}, "messages", forms=False)


_PATH = {
    "parameters": [
        {"name": "path", "in": "query", "required": True, "schema": _TEXT,
         "description": "as `file` of a result names it"}
    ]
}  # fmt: skip
_IDS = {"task_id_list": {"anyOf": [{"type": "array", "items": _TEXT}, _TEXT]}}
_FORMATTED = {
    "prompt": _TEXT, "lyrics": _TEXT, "temperature": {"type": "number"},
    "param_obj": {"type": "string", "description": "JSON: bpm, key, time_signature, duration, language"},
}  # fmt: skip

EXTRA: dict[str, dict[str, Any]] = {
    "/release_task": _release(),
    "/query_result": _body(_IDS, "task_id_list"),
    "/cancel_task": _body({"task_id": _TEXT}, "task_id"),
    "/format_input": _body(_FORMATTED),
    "/create_random_sample": _body({"sample_type": _TEXT}),
    "/v1/chat/completions": _chat(),
    "/openai/v1/chat/completions": _chat(),
    "/v1/audio": _PATH,
}
"""By address, what its part of the document says beside FastAPI's own."""
