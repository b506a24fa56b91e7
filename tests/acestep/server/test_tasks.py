"""The task API: every endpoint and what it answers, as ACE-Step's clients know it."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from server_support import KEY, SONG, Server

from acestep.server.options import Limits

Make = Callable[..., Server]


def songs(item: dict[str, Any]) -> list[dict[str, Any]]:
    assert isinstance(item["result"], str)
    return list(json.loads(item["result"]))


def test_a_song_from_asking_to_hearing(server: Server) -> None:
    answer = server.client.post("/release_task", json={**SONG, "batch_size": 2, "key_scale": "Am"})
    told = answer.json()
    assert set(told) == {"data", "code", "error", "timestamp", "extra"}
    assert (told["code"], told["error"], told["extra"]) == (200, None, None)
    assert abs(told["timestamp"] / 1000 - time.time()) < 60
    assert set(told["data"]) == {"task_id", "status", "queue_position"}
    assert (told["data"]["status"], told["data"]["queue_position"]) == ("queued", 1)
    item = server.ended(told["data"]["task_id"])
    assert item["status"] == 1, item
    first, second = songs(item)
    assert {
        "file", "wave", "status", "create_time", "env", "prompt", "lyrics", "metas",
        "generation_info", "seed_value", "lm_model", "dit_model",
    } <= set(first)  # fmt: skip
    assert (first["status"], first["seed_value"], first["dit_model"]) == (1, "5,6", "demo")
    assert first["metas"] == {
        "bpm": None, "duration": 1.0, "genres": "", "keyscale": "A minor", "timesignature": "",
    }  # fmt: skip
    assert first["file"].startswith("/v1/audio?path=")
    sounds = []
    for song in (first, second):
        audio = server.client.get(song["file"])
        assert (audio.status_code, audio.headers["content-type"]) == (200, "audio/wav")
        samples, rate = soundfile.read(io.BytesIO(audio.content))
        assert (samples.shape, rate) == ((48000, 2), 48000)
        sounds.append(samples)
    assert (sounds[0] != sounds[1]).any()
    part = server.client.get(first["file"], headers={"range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")
    assert server.client.head(first["file"]).status_code == 200
    stats = server.client.get("/v1/stats").json()["data"]
    assert stats["jobs"] == {
        "total": 1, "queued": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    assert (stats["queue_size"], stats["queue_maxsize"]) == (0, 200)
    assert stats["avg_job_seconds"] > 0
    text = server.client.get("/metrics").text
    for line in (
        'acestep_tasks_ended_total{kind="song",state="succeeded"} 1.0',
        'acestep_http_requests_total{method="POST",route="/release_task",status="200"} 1.0',
        'acestep_tasks{state="succeeded"} 1.0',
        "acestep_audio_seconds_total 2.0",
    ):
        assert line in text


def test_the_same_seed_is_the_python_apis_song(server: Server, handler: Any) -> None:
    from acestep.inference import GenerationConfig, GenerationParams, run

    item = server.ended(server.release(audio_bit_depth=32))
    heard, _ = soundfile.read(io.BytesIO(server.client.get(songs(item)[0]["file"]).content))
    params = GenerationParams.of(
        {"caption": "warm piano", "duration": 1, "inference_steps": 2, "seed": 5,
         "vocal_language": "en"}
    )  # fmt: skip
    made = run(handler, params, GenerationConfig(batch_size=1)).songs[0].audio
    assert abs(heard.T - made.numpy()).max() < 1e-6


FORM = {name: str(value) for name, value in SONG.items()}


def test_forms_and_uploads(server: Server, song_file: Path) -> None:
    with song_file.open("rb") as file:
        answer = server.client.post(
            "/release_task", data={**FORM, "taskType": "cover"}, files={"src_audio": file}
        )
    item = server.ended(answer.json()["data"]["task_id"])
    assert item["status"] == 1, item
    assert songs(item)[0]["metas"]["duration"] == pytest.approx(2.0, abs=0.1)
    deadline = time.monotonic() + 5
    while any(server.store.uploads.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_names_of_uploads(idle: Server, song_file: Path) -> None:
    cases = {
        "ctx_audio": "src_audio", "srcAudio": "src_audio", "ref_audio": "reference_audio",
        "reference_audio": "reference_audio",
    }  # fmt: skip
    for sent, ours in cases.items():
        with song_file.open("rb") as file:
            answer = idle.client.post("/release_task", data=FORM, files={sent: file})
        task = idle.store.get(answer.json()["data"]["task_id"])
        assert task is not None
        ((name, path),) = task.asked["sounds"].items()
        assert name == ours
        assert Path(path).read_bytes() == song_file.read_bytes()
        idle.service.line.stop(task.id)
    assert list(idle.store.uploads.iterdir()) == []


def test_a_result_is_the_source_of_the_next(server: Server) -> None:
    first = songs(server.ended(server.release()))[0]["file"]
    task = server.release(task_type="repaint", src_audio_path=first, repainting_end=0.5)
    assert server.ended(task)["status"] == 1


def test_paths_lead_nowhere_unless_allowed(make_server: Make, song_file: Path) -> None:
    closed = make_server(working=False)
    allowed = make_server(working=False, allowed=(song_file.parent,))
    cover = {**SONG, "task_type": "cover", "src_audio_path": str(song_file)}
    answer = closed.client.post("/release_task", json=cover)
    assert answer.status_code == 400
    assert "neither a result nor a file" in answer.json()["detail"]
    assert str(song_file) not in answer.text
    answer = allowed.client.post("/release_task", json=cover)
    task = allowed.store.get(answer.json()["data"]["task_id"])
    assert task is not None
    assert task.asked["sounds"] == {"src_audio": str(song_file)}
    outside = {**cover, "src_audio_path": f"{song_file.parent}/../../../../etc/passwd"}
    assert allowed.client.post("/release_task", json=outside).status_code == 400


def test_songs_planned_ahead_are_those_made_in_turn(make_server: Make) -> None:
    """Two tasks at a time with the same models; the last worker to end lets them go."""
    ahead, alone = make_server(working=False, ahead=True), make_server()
    work = ahead.service.workers[0].work
    assert [worker.work for worker in ahead.service.workers] == [work, work]
    both, closed = threading.Barrier(2, timeout=60), list[int]()
    find = work.engines.music
    work.engines.music = lambda *told: (both.wait(), find(*told))[1]
    work.engines.close = lambda: closed.append(work.workers)
    ids = [ahead.release(thinking=True, seed=seed) for seed in (5, 6)]
    ahead.service.start()
    made = [heard(ahead, ahead.ended(task)) for task in ids]
    assert made[0] == heard(alone, alone.ended(alone.release(thinking=True, seed=5)))
    assert made[1] != made[0]
    ahead.service.line.close()
    assert all(worker.join(30) for worker in ahead.service.workers)
    assert closed == [0]


def heard(server: Server, item: dict[str, Any]) -> bytes:
    """The file of a task's song."""
    assert item["status"] == 1, item
    return bytes(server.client.get(songs(item)[0]["file"]).content)


def test_planning_inventing_and_rewriting(server: Server) -> None:
    thinking = server.ended(server.release(thinking=True, duration=1))
    assert songs(thinking)[0]["lm_model"], thinking
    invented = server.ended(server.release(prompt="", sample_query="a slow flute", duration=1))
    assert songs(invented)[0]["prompt"], invented
    words = server.ended(server.release(prompt="", lyrics="[verse]\nhello there", duration=1))
    assert songs(words)[0]["lyrics"] == "[verse]\nhello there"


def test_planner_endpoints(server: Server) -> None:
    names = {
        "caption", "lyrics", "bpm", "key_scale", "time_signature", "duration", "vocal_language",
    }  # fmt: skip
    given = {
        "prompt": "piano", "lyrics": "[verse]\nla", "temperature": 0.8,
        "param_obj": '{"bpm": 96, "key": "C major", "duration": 30}',
    }  # fmt: skip
    answer = server.client.post("/format_input", json=given)
    assert answer.status_code == 200, answer.text
    made = answer.json()["data"]
    assert names <= set(made)
    assert (made["bpm"], made["key_scale"], made["duration"]) == (96, "C major", 30)
    answer = server.client.post("/create_random_sample", json={"sample_type": "simple_mode"})
    assert names <= set(answer.json()["data"])
    assert server.client.post("/create_random_sample").status_code == 200
    bad = server.client.post("/format_input", json={"prompt": "x", "param_obj": "{"})
    assert bad.status_code == 400


def test_what_is_asked_about_tasks(idle: Server) -> None:
    first, second = idle.release(), idle.release()
    for ids in ([first, second], json.dumps([first, second])):
        answer = idle.client.post("/query_result", json={"task_id_list": ids}).json()["data"]
        assert [(item["task_id"], item["status"]) for item in answer] == [(first, 0), (second, 0)]
    form = idle.client.post("/query_result", data={"task_id_list": json.dumps([first])})
    assert form.json()["data"][0]["progress_text"] == "place 1 in the queue"
    unknown = idle.item("nobody")
    assert unknown["status"] == 2
    assert "no such task" in songs(unknown)[0]["error"]
    for wrong in (None, 5, [5], "[", {"a": 1}, ["x"] * 1001):
        answer = idle.client.post("/query_result", json={"task_id_list": wrong})
        assert answer.status_code == 400, wrong


def test_models_health_and_the_page(idle: Server) -> None:
    assert idle.client.get("/v1/models").json()["data"] == {
        "models": [{"name": "demo", "is_default": True}], "default_model": "demo",
    }  # fmt: skip
    assert idle.client.get("/health").json()["data"] == {
        "status": "ok", "service": "ACE-Step API", "version": "1.0",
    }  # fmt: skip
    document = idle.client.get("/openapi.json").json()
    assert {"/release_task", "/query_result", "/v1/chat/completions"} <= set(document["paths"])
    body = document["paths"]["/release_task"]["post"]["requestBody"]["content"]
    assert set(body) == {
        "application/json", "application/x-www-form-urlencoded", "multipart/form-data",
    }  # fmt: skip
    assert idle.client.get("/docs").status_code == 200
    answer = idle.client.post("/release_task", json={**SONG, "model": "other"})
    assert (answer.status_code, "choose from demo" in answer.text) == (400, True)
    for name in ("acestep/demo", "auto", ""):
        assert idle.client.post("/release_task", json={**SONG, "model": name}).status_code == 200


def test_cancelling(idle: Server) -> None:
    task = idle.release()
    answer = idle.client.post("/cancel_task", json={"task_id": task})
    assert answer.json()["data"] == {"task_id": task, "status": "cancelled"}
    item = idle.item(task)
    assert (item["status"], songs(item)[0]["error"]) == (2, "cancelled")
    assert idle.client.post("/cancel_task", json={"task_id": "x"}).status_code == 404
    assert idle.client.post("/cancel_task", json={}).status_code == 400


def test_cancelling_what_runs(server: Server) -> None:
    task = server.release(inference_steps=1000)
    deadline = time.monotonic() + 30
    while json.loads(server.item(task)["result"])[0].get("progress", 0) <= 0.35:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.client.post("/cancel_task", json={"task_id": task})
    assert songs(server.ended(task))[0]["error"] == "cancelled"
    assert server.store.usage() == (0, 0)


def test_cancelling_what_plans(server: Server) -> None:
    task = server.release(thinking=True, duration=300)
    deadline = time.monotonic() + 30
    while not json.loads(server.item(task)["result"])[0].get("stage", "").startswith("planning"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.client.post("/cancel_task", json={"task_id": task})
    assert songs(server.ended(task))[0]["error"] == "cancelled"


def test_a_full_queue(make_server: Make, song_file: Path) -> None:
    full = make_server(working=False, limits=Limits(waiting=1))
    full.release()
    answer = full.client.post("/release_task", json=SONG)
    assert answer.status_code == 429
    assert "queue is full" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) >= 1
    with song_file.open("rb") as file:
        fields = {name: str(value) for name, value in SONG.items()}
        answer = full.client.post("/release_task", data=fields, files={"ref_audio": file})
    assert answer.status_code == 429
    assert list(full.store.uploads.iterdir()) == []


def test_keys(make_server: Make) -> None:
    locked = make_server(working=False, api_key=KEY, limits=Limits(wrong_keys=4))
    client, right = locked.client, {"authorization": f"Bearer {KEY}"}
    assert client.get("/health").status_code == 200
    for path in ("/v1/models", "/v1/stats", "/metrics", "/openai/v1/models"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=right).status_code == 200
    assert client.post("/release_task", json=SONG).status_code == 401
    assert client.post("/release_task", content=b"{").status_code == 401
    assert client.post("/release_task", json={**SONG, "ai_token": KEY}).status_code == 200
    assert client.post("/release_task", data={"prompt": "x", "aiToken": KEY}).status_code == 200
    assert client.post("/release_task", json=SONG, headers=right).status_code == 200
    for wrong in ("Bearer no", "Basic x", f"Bearer {KEY}x"):
        answer = client.post("/release_task", json=SONG, headers={"authorization": wrong})
        assert (answer.status_code, set(answer.json())) == (401, {"detail"})
    assert client.post("/release_task", json={**SONG, "ai_token": 5}).status_code == 401
    assert client.post("/release_task", json={**SONG, "ai_token": "no"}).status_code == 401
    guess = client.post("/release_task", json={**SONG, "ai_token": "no"})
    assert (guess.status_code, "retry-after" in guess.headers) == (429, True)
    # Who has the key is not kept out by who guesses from the same address.
    assert client.post("/release_task", json=SONG, headers=right).status_code == 200
    secrets = [path.read_bytes() for path in locked.store.folder.glob("tasks.db*")]
    assert not any(KEY.encode() in content for content in secrets)


def test_an_old_result_says_what_became_of_it(idle: Server) -> None:
    task, name = idle.release(), _made(idle)
    idle.store.take()
    made = {"file": name, "seed": 5, "seconds": 1.0}
    idle.store.succeed(task, {"songs": [made]}, [name])
    assert idle.client.get(f"/v1/audio?path={name}").content == b"la"
    idle.store.prune(time.time() + 8 * 86400)
    item = idle.item(task)
    assert item["status"] == 2
    assert "its files were removed on" in songs(item)[0]["error"]
    assert idle.client.get(f"/v1/audio?path={name}").status_code == 404


def test_what_fails_says_why(server: Server, song_file: Path) -> None:
    form = {**FORM, "task_type": "extract"}
    with song_file.open("rb") as file:
        answer = server.client.post("/release_task", data=form, files={"src_audio": file})
    item = server.ended(answer.json()["data"]["task_id"])
    assert item["status"] == 2
    assert "cannot do the task 'extract'" in songs(item)[0]["error"]


def _made(server: Server) -> str:
    part, name = server.store.new_result("wav")
    part.write_bytes(b"la")
    server.store.keep(part, name)
    return name


def test_what_takes_too_long_fails(make_server: Make) -> None:
    hasty = make_server(limits=Limits(task_seconds=0.05))
    item = hasty.ended(hasty.release(inference_steps=1000))
    assert "longer than a task may take" in songs(item)[0]["error"]


def test_a_stop_keeps_what_runs_and_what_waits(make_server: Make) -> None:
    stopping = make_server()
    running, waiting = stopping.release(inference_steps=1000), stopping.release()
    deadline = time.monotonic() + 30
    while json.loads(stopping.item(running)["result"])[0].get("progress", 0) <= 0.35:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # What a first and a second signal do.
    stopping.service.line.close()
    stopping.service.line.close(True)
    assert stopping.service.workers[0].join(30)
    tasks = [stopping.store.get(task) for task in (running, waiting)]
    assert [(task.state, task.attempts) for task in tasks if task] == [("queued", 0)] * 2
    answer = stopping.client.post("/format_input", json={"prompt": "x"})
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


def test_too_many_sounds_wait(make_server: Make, song_file: Path) -> None:
    full = make_server(working=False, limits=Limits(waiting_bytes=100))
    answer = full.client.post(
        "/release_task", data=FORM, files={"ref_audio": song_file.read_bytes()}
    )
    assert (answer.status_code, "too many sounds" in answer.text) == (429, True)
    assert list(full.store.uploads.iterdir()) == []
