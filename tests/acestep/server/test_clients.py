"""Requests as the clients there are write them: web front ends, DAW plug-ins, bots, scripts.

Their public documentation and calls were read; the requests are ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from server_support import Server

# What a client sends, and what is then in the task: parameters and configuration.
JSON: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "a web front end, with all it has": (
        {
            "prompt": "upbeat synthwave", "lyrics": "[Verse]\nlights", "audio_duration": 60,
            "bpm": None, "key_scale": "", "time_signature": "", "inference_steps": 8,
            "guidance_scale": 7.0, "shift": 3.0, "batch_size": 2, "audio_format": "mp3",
            "thinking": False, "use_format": False, "use_cot_caption": True,
            "use_cot_language": True, "seed": -1, "use_random_seed": True, "vocal_language": "en",
            "task_type": "text2music", "infer_method": "ode", "lm_temperature": 0.85,
            "lm_cfg_scale": 2.5, "lm_top_p": 0.9, "lm_top_k": None, "lm_backend": "pt",
            "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "use_adg": False,
        },
        {"caption": "upbeat synthwave", "duration": 60, "inference_steps": 8, "seed": -1},
        {"batch_size": 2, "audio_format": "mp3"},
    ),
    "a TypeScript client": (
        {
            "caption": "soft piano", "audioDuration": "30", "keyScale": "C Major",
            "timeSignature": "4/4", "vocalLanguage": "en", "batchSize": 1, "useAdg": False,
            "inferMethod": "sde", "lmCfgScale": 2, "lmTemperature": 0.7, "audioFormat": "wav",
        },
        {"caption": "soft piano", "keyscale": "C Major", "infer_method": "sde", "lm_cfg_scale": 2},
        {"batch_size": 1, "audio_format": "wav"},
    ),
    "a player of background music": (
        {
            "prompt": "rain, instrumental", "lyrics": "[instrumental]", "audio_duration": 120,
            "bpm": None, "guidance_scale": 7, "use_random_seed": True, "use_cot_caption": False,
            "use_cot_language": False, "batch_size": 1,
        },
        {"lyrics": "[instrumental]", "use_cot_caption": False},
        {"use_random_seed": True},
    ),
    "a VST3 plug-in": (
        {
            "prompt": "a bright chorus", "lyrics": "[Chorus]\nlights", "vocal_language": "en",
            "thinking": False, "audio_duration": 30, "inference_steps": 8, "guidance_scale": 7.0,
            "use_random_seed": False, "seed": 12345, "batch_size": 1, "audio_format": "wav",
        },
        {"seed": 12345, "duration": 30, "inference_steps": 8},
        {"use_random_seed": False, "audio_format": "wav"},
    ),
    "a game's engine": (
        {"prompt": "tense strings", "audio_duration": 10, "bpm": 128, "audio_format": "wav"},
        {"bpm": 128, "vocal_language": "en"},
        {"batch_size": 2},
    ),
    "a tool of an assistant": (
        {"sample_query": "a happy birthday song for a cat", "thinking": True, "batch_size": 1},
        {"thinking": True},
        {},
    ),
    "a node of a graph": (
        {
            "prompt": "drums", "custom_timesteps": "0.97,0.76,0.615,0.5,0.395,0.28,0.18,0.085,0",
            "metas": {"bpm": 174, "keyscale": "F# minor", "duration": 12}, "colour": "blue",
        },
        {"bpm": 174, "keyscale": "F# minor", "duration": 12},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON)
def test_requests_in_json(idle: Server, name: str) -> None:
    sent, params, config = JSON[name]
    answer = idle.client.post("/release_task", json=sent)
    assert answer.status_code == 200, answer.text
    task = idle.store.get(answer.json()["data"]["task_id"])
    assert task is not None
    assert {key: task.asked["params"][key] for key in params} == params
    assert {key: task.asked["config"][key] for key in config} == config
    assert ("notices" in answer.json()["data"]) == ("colour" in sent)


def test_a_plug_in_sends_its_track_as_a_form(idle: Server, song_file: Path) -> None:
    fields = {
        "task_type": "repaint", "prompt": "brass", "lyrics": "", "batch_size": "1",
        "inference_steps": "8", "thinking": "false", "use_format": "false", "seed": "42",
        "repainting_start": "0.5", "repainting_end": "-1", "chunk_mask_mode": "explicit",
    }  # fmt: skip
    file = {"src_audio": ("blob", song_file.read_bytes(), "application/octet-stream")}
    answer = idle.client.post("/release_task", data=fields, files=file)
    assert answer.status_code == 200, answer.text
    assert "chunk_mask_mode" in answer.json()["data"]["notices"][0]
    for body in ({"task_id": answer.json()["data"]["task_id"]}, {"taskIdList": []}):
        assert idle.client.post("/query_result", json=body).status_code == 200


def test_results_are_fetched_by_name_or_by_address(idle: Server) -> None:
    part, name = idle.store.new_result("mp3")
    part.write_bytes(b"la")
    idle.store.keep(part, name)
    task = idle.release()
    idle.store.take()
    idle.store.succeed(task, {"songs": []}, [name])
    for path in (name, quote(f"/v1/audio?path={name}", safe="")):
        assert idle.client.get(f"/v1/audio?path={path}").content == b"la"


def test_a_shell_script_reads_the_answers(idle: Server) -> None:
    task = idle.release()
    answer = idle.client.post("/query_result", content=json.dumps({"task_id_list": [task]}))
    (item,) = answer.json()["data"]
    assert json.loads(item["result"])[0]["status"] == 0
    assert idle.client.get("/health").json()["data"]["status"] == "ok"
