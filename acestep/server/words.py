"""What a chat says: its last message's words and sounds, as the task API's fields."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acestep.server.bodies import BodyError
from acestep.server.fields import squashed

_TAG = r"<\s*{0}\s*>(.*?)<\s*/\s*{0}\s*>"
_PROMPT = re.compile(_TAG.format("prompt"), re.IGNORECASE | re.DOTALL)
_LYRICS = re.compile(_TAG.format("lyrics"), re.IGNORECASE | re.DOTALL)
_SECTION = re.compile(
    r"^\s*\[\s*(intro|verse|pre-?chorus|chorus|bridge|hook|outro|inst|instrumental|solo|drop|"
    r"interlude|build|refrain)\b[^\]]*\]\s*$",
    re.IGNORECASE | re.MULTILINE,
)
# Verses are short lines, and several of them; a description is a sentence or two.
_LINES, _LINE_CHARS = 4, 60
_MOST_SOUNDS = 2

# Of chat completions, in the task API's names.
_RENAMED = {"temperature": "lm_temperature", "topp": "lm_top_p"}
_OURS = frozenset(
    squashed(name)
    for name in ("messages", "stream", "audio_config", "audio", "cancel_on_disconnect")
)


@dataclass(frozen=True)
class Said:
    """What a chat asks for.

    Attributes:
        values: fields of the task API.
        sounds: contents of audio files by the parameter that they are.
        stream: whether the answer is to come in pieces.
        give_up: whether the song is cancelled when the client goes away.
    """

    values: dict[str, Any]
    sounds: dict[str, bytes]
    stream: bool
    give_up: bool


def said(body: Mapping[str, Any]) -> Said:
    """The request of a body of chat completions.

    Raises:
        BodyError: there is no message of a user, or one of its parts is not what it says.
    """
    text, sounds = _last_message(body.get("messages"))
    values = {
        _RENAMED.get(squashed(name), name): value
        for name, value in body.items()
        if squashed(name) not in _OURS
    }
    values["metas"] = {**_config(body.get("audio")), **_config(body.get("audio_config"))}
    known = {squashed(name): name for name, value in values.items() if value not in (None, "")}
    if "lyrics" in known:
        values["prompt"] = text
    elif _yes(values.get(known.get("samplemode", ""))):
        values["sample_query"] = text
    else:
        values.update(_read(text))
    task = str(values.get(known.get("tasktype", "")) or "text2music")
    names = ("reference_audio",) if task == "text2music" else ("src_audio", "reference_audio")
    if len(sounds) > len(names):
        raise BodyError(f"the message has {len(sounds)} sounds; {task} takes {len(names)}")
    return Said(
        values,
        dict(zip(names, sounds, strict=False)),
        stream=_yes(body.get("stream")),
        give_up=_yes(body.get("cancel_on_disconnect")),
    )


def looks_like_lyrics(text: str) -> bool:
    """Whether a text is there to be sung: it has section tags, or several short lines."""
    if _SECTION.search(text):
        return True
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) >= _LINES and max(map(len, lines)) <= _LINE_CHARS


def _read(text: str) -> dict[str, Any]:
    """What a text means where nothing else says it."""
    prompt, lyrics = _PROMPT.search(text), _LYRICS.search(text)
    if prompt or lyrics:
        return {
            "prompt": prompt[1].strip() if prompt else _LYRICS.sub("", text).strip(),
            "lyrics": lyrics[1].strip() if lyrics else "",
        }
    return {"lyrics": text} if looks_like_lyrics(text) else {"sample_query": text}


def _last_message(messages: Any) -> tuple[str, list[bytes]]:
    if not isinstance(messages, list) or not messages:
        raise BodyError("messages is no list with a message in it")
    if not all(isinstance(one, Mapping) for one in messages):
        raise BodyError("a message is no object with role and content")
    users = [one for one in messages if one.get("role", "user") == "user"]
    if not users:
        raise BodyError("no message is of the role user")
    content = users[-1].get("content")
    if isinstance(content, str):
        return content.strip(), []
    if not isinstance(content, list):
        raise BodyError("the content of a message is neither text nor a list of parts")
    texts, sounds = [], []
    for part in content:
        if not isinstance(part, Mapping):
            raise BodyError("a part of a message is no object")
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "input_audio":
            sounds.append(_sound(part.get("input_audio")))
        else:
            raise BodyError("a part of a message is neither text nor input_audio")
    if len(sounds) > _MOST_SOUNDS:
        raise BodyError(f"the message has {len(sounds)} sounds; the most is {_MOST_SOUNDS}")
    return "\n".join(texts).strip(), sounds


def _sound(part: Any) -> bytes:
    data = part.get("data") if isinstance(part, Mapping) else None
    if not isinstance(data, str) or not data:
        raise BodyError("input_audio has no data")
    encoded = data.partition(",")[2] if data.startswith("data:") else data
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BodyError("the data of input_audio is not base64") from None


def _config(given: Any) -> dict[str, Any]:
    """The members of `audio_config`, in the task API's names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise BodyError("audio_config is no object")
    return {("audio_format" if name == "format" else name): value for name, value in given.items()}


def _yes(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "yes", "on")
