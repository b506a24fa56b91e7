"""Chat completions, by the `openai` package as it is and by hand."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile
from server_support import KEY, Server

from acestep.server import words
from acestep.server.bodies import BodyError
from acestep.server.options import Limits

Make = Callable[..., Server]

TAGS = "<prompt>warm piano</prompt><lyrics>[verse]\nla la</lyrics>"
SHORT = {"audio_config": {"duration": 1, "format": "wav"}, "inference_steps": 2, "seed": 5}


def asking(text: Any = TAGS, **more: Any) -> dict[str, Any]:
    return {
        "model": "acestep/demo",
        "messages": [{"role": "user", "content": text}],
        **SHORT,
        **more,
    }


def heard(audio: Any) -> tuple[float, int]:
    (part,) = audio
    # The package makes objects of what it knows, and leaves the rest as it is.
    where = part["audio_url"] if isinstance(part, dict) else part.audio_url
    kind, _, data = where["url"].partition(",")
    assert kind == "data:audio/wav;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    return samples.shape[0] / rate, rate


@pytest.fixture
def client(make_server: Make) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, whose requests a service in this process answers."""
    server = make_server(api_key=KEY, limits=Limits(heartbeat=0.05))
    with openai.OpenAI(
        base_url="http://127.0.0.1:8001/v1", api_key=KEY, http_client=server.client, max_retries=0
    ) as made:
        yield made


def test_the_openai_package_makes_a_song(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="acestep/demo", messages=[{"role": "user", "content": TAGS}], extra_body=SHORT
    )
    (choice,) = made.choices
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert heard(choice.message.audio) == (1.0, 48000)
    content = choice.message.content or ""
    assert content.startswith("## Metadata\n**Caption:** warm piano")
    assert content.endswith("## Lyrics\n[verse]\nla la")
    assert made.usage is not None
    assert made.usage.total_tokens > 0


def test_the_openai_package_makes_a_song_in_pieces(client: openai.OpenAI) -> None:
    pieces = list(
        client.chat.completions.create(
            model="acestep/demo", messages=[{"role": "user", "content": TAGS}], stream=True,
            extra_body=SHORT,
        )
    )  # fmt: skip
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert "warm piano" in text
    progress = [piece.progress for piece in pieces if piece.model_extra]
    assert progress, "no sign of life"
    fractions = [one["fraction"] for one in progress]
    assert fractions == sorted(fractions)
    (audio,) = (d.audio for p in pieces if getattr(d := p.choices[0].delta, "audio", None))
    assert heard(audio) == (1.0, 48000)
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_the_openai_package_lists_models_and_hears_errors(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("acestep/demo", "model")
    with pytest.raises(openai.BadRequestError, match="unknown model"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": TAGS}])
    other = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match="the key is wrong"):
        other.models.list()


def test_the_stream_as_it_is_sent(make_server: Make) -> None:
    # The end is told at once, not at the next sign of life.
    server = make_server(limits=Limits(heartbeat=60))
    began = time.monotonic()
    answer = server.client.post("/openai/v1/chat/completions", json=asking(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert len({piece["id"] for piece in pieces}) == 1
    assert time.monotonic() - began < 60


def test_a_failure_in_a_stream_is_told(server: Server) -> None:
    sound = base64.b64encode(_wav()).decode()
    parts = [
        {"type": "text", "text": TAGS},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    ]
    answer = server.client.post(
        "/v1/chat/completions", json=asking(parts, stream=True, task_type="extract")
    )
    lines = [line for line in answer.text.split("\n\n") if line]
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert "cannot do the task" in error["message"]
    assert lines[-1] == "data: [DONE]"
    whole = server.client.post("/v1/chat/completions", json=asking(parts, task_type="extract"))
    assert (whole.status_code, set(whole.json())) == (500, {"detail", "error"})


def test_a_sound_in_a_message_is_the_source(server: Server) -> None:
    sound = base64.b64encode(_wav()).decode()
    parts = [
        {"type": "text", "text": "<prompt>harp</prompt>"},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    ]
    answer = server.client.post("/v1/chat/completions", json=asking(parts, task_type="cover"))
    assert answer.status_code == 200, answer.text
    assert heard(answer.json()["choices"][0]["message"]["audio"])[0] == pytest.approx(0.6, abs=0.1)


def test_the_two_lists_of_models(idle: Server) -> None:
    ours = idle.client.get("/v1/models").json()
    assert ours["data"]["default_model"] == "demo"
    for headers, path in (
        ({"x-stainless-lang": "js"}, "/v1/models"),
        ({"user-agent": "OpenAI/Python 3"}, "/v1/models"),
        ({}, "/openai/v1/models"),
    ):
        told = idle.client.get(path, headers=headers).json()
        assert told["object"] == "list"
        assert {"id", "name", "created", "input_modalities", "output_modalities"} <= set(
            told["data"][0]
        )


def test_who_goes_away_stops_it_where_asked(make_server: Make) -> None:
    import asyncio

    from acestep.server.chat import ChatApi

    idle = make_server(working=False, limits=Limits(heartbeat=0.02))
    for give_up, state in ((True, "cancelled"), (False, "queued")):
        task, _ = idle.service.line.submit("x", "song", {}, attended=True)

        async def leave(task: Any = task, give_up: bool = give_up) -> None:
            from acestep.server.chat import _Answer

            pieces = ChatApi(idle.service)._pieces(None, task, _Answer(task, "m"), give_up)  # type: ignore[arg-type]
            await anext(pieces)
            await anext(pieces)
            await pieces.aclose()  # type: ignore[attr-defined]

        asyncio.run(leave())
        found = idle.store.get(task.id)
        assert found is not None
        assert found.state == state


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"lyrics": "la"}, {"prompt": "T", "lyrics": "la"}),
        ({"sample_mode": True}, {"sample_query": "T", "sample_mode": True}),
        ({}, {"sample_query": "T"}),
        ({"temperature": 0.5, "top_p": 0.8, "seed": "1,2"},
         {"lm_temperature": 0.5, "lm_top_p": 0.8, "seed": "1,2", "sample_query": "T"}),
    ],
)  # fmt: skip
def test_what_a_text_is(body: dict[str, Any], expected: dict[str, Any]) -> None:
    values = words.said({"messages": [{"role": "user", "content": " T "}], **body}).values
    assert {name: value for name, value in values.items() if name != "metas"} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TAGS, {"prompt": "warm piano", "lyrics": "[verse]\nla la"}),
        ("<PROMPT>x</PROMPT>", {"prompt": "x", "lyrics": ""}),
        ("soft rain <lyrics>la</lyrics>", {"prompt": "soft rain", "lyrics": "la"}),
        ("[Verse 1]\nhello", {"lyrics": "[Verse 1]\nhello"}),
        ("one\ntwo\nthree\nfour", {"lyrics": "one\ntwo\nthree\nfour"}),
        ("a song about rain", {"sample_query": "a song about rain"}),
        ("a song\nabout rain", {"sample_query": "a song\nabout rain"}),
    ],
)
def test_what_a_text_alone_means(text: str, expected: dict[str, Any]) -> None:
    values = words.said({"messages": [{"role": "user", "content": text}]}).values
    assert {name: value for name, value in values.items() if name != "metas"} == expected


def test_the_last_message_of_the_user_counts() -> None:
    messages = [
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "first"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "second"}]},
    ]  # fmt: skip
    said = words.said({"messages": messages, "audio": {"voice": "a", "format": "flac"},
                       "audio_config": {"bpm": 90}, "cancel_on_disconnect": True})  # fmt: skip
    assert said.values["sample_query"] == "second"
    assert said.values["metas"] == {"voice": "a", "audio_format": "flac", "bpm": 90}
    assert (said.stream, said.give_up) == (False, True)


@pytest.mark.parametrize(
    "messages",
    [
        None, [], "x", [5], [{"role": "system", "content": "x"}], [{"role": "user"}],
        [{"role": "user", "content": [5]}], [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": [{"type": "input_audio"}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "ä"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}] * 3}],
    ],
)  # fmt: skip
def test_messages_that_are_none(messages: Any) -> None:
    with pytest.raises(BodyError):
        words.said({"messages": messages})


def _wav() -> bytes:
    import numpy as np

    file = io.BytesIO()
    soundfile.write(
        file, np.sin(np.arange(28800) / 20)[:, None].repeat(2, 1) / 4, 48000, format="WAV"
    )
    return file.getvalue()


def test_a_broken_sound_is_refused(idle: Server) -> None:
    sound = base64.b64encode(b"RIFF" + bytes(2000)).decode()
    parts = [
        {"type": "text", "text": "x"},
        {"type": "input_audio", "input_audio": {"data": f"data:audio/wav;base64,{sound}"}},
    ]
    answer = idle.client.post("/v1/chat/completions", json=asking(parts, task_type="cover"))
    assert answer.status_code == 400
    assert "cannot be used" in answer.json()["error"]["message"]
    assert list(Path(idle.store.uploads).iterdir()) == []
