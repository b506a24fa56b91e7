"""Every field of the Python API can be asked for at every door, or it says here why not."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from acestep.acestep_v15_pipeline import build_parser
from acestep.batch.jobs import read_jobs
from acestep.cli import batch, file_options, song_options
from acestep.errors import RequestError
from acestep.gradio_ui.interfaces import form, service
from acestep.gradio_ui.interfaces.api import Api
from acestep.gradio_ui.settings import Choice, PageOptions
from acestep.gradio_ui.song_request import SongRequest
from acestep.handler import AceStepHandler
from acestep.llm_inference import LLMHandler
from acestep.server import fields as http
from acestep.server.asking import understood
from acestep.server.engines import Engines
from acestep.server.options import ServerOptions, from_environment
from acestep.song.params import GenerationConfig, GenerationParams, words_and_numbers
from acestep.song.request import Request

FIELDS = tuple(field.name for field in dataclasses.fields(GenerationParams))
CODES = "<|audio_code_5|>"

# The field; options of the command line; form values; the request's field and what it is then.
ASKED: dict[str, tuple[list[str], dict[str, Any], str, Any]] = {
    "task_type": (["--task", "repaint"], {"task": "repaint"}, "task", "repaint"),
    "instruction": (["--instruction", "Do."], {"instruction": "Do."}, "instruction", "Do."),
    "audio_codes": (["--codes", CODES], {"codes": CODES}, "audio_codes", CODES),
    "caption": ([], {"prompt": "x"}, "caption", "x"),
    "lyrics": (["--lyrics", "la"], {"lyrics": "la"}, "lyrics", "la"),
    "instrumental": (["--instrumental"], {"instrumental": True}, "lyrics", "[Instrumental]"),
    "vocal_language": (["--language", "Chinese"], {"language": "zh-CN"}, "language", "zh"),
    "bpm": (["--bpm", "120.0"], {"bpm": "120"}, "bpm", 120),
    "keyscale": (["--key", "Am"], {"key": "a min"}, "key", "A minor"),
    "timesignature": (["--time-signature", "6/8"], {"time_signature": 6}, "time_signature", "6"),
    "duration": (["--duration", "1:30"], {"duration": "90"}, "duration", 90.0),
    "inference_steps": (["--steps", "5"], {"steps": "5"}, "steps", 5),
    "seed": (["--seed", "7"], {"seed": "7"}, "seeds", (7,)),
    "guidance_scale": (["--guidance-scale", "3"], {"guidance": 3}, "guidance_scale", 3),
    "use_adg": (["--adg"], {"adg": "true"}, "use_adg", True),
    "cfg_interval_start": (
        ["--guidance-interval", "0.2:"], {"guidance_start": 0.2}, "cfg_interval", (0.2, 1.0)
    ),
    "cfg_interval_end": (
        ["--guidance-interval", "0:0.5"], {"guidance_end": 0.5}, "cfg_interval", (0.0, 0.5)
    ),
    "shift": (["--shift", "3"], {"shift": 3.0}, "shift", 3),
    "infer_method": (["--infer-method", "sde"], {"method": "sde"}, "infer_method", "sde"),
    "timesteps": (["--timesteps", "1,.5,0"], {"timesteps": "1, 0.5"}, "timesteps", (1.0, 0.5)),
    "repainting_start": (["--repaint=-2:"], {"repaint_start": -2, "repaint_end": -1}, "repaint", (-2, None)),
    "repainting_end": (["--repaint", ":9"], {"repaint_end": 9}, "repaint", (0, 9)),
    "repaint_mode": (
        ["--repaint-mode", "aggressive"], {"repaint_mode": "Aggressive"}, "repaint_mode", "aggressive"
    ),
    "repaint_strength": (
        ["--repaint-strength", "1"], {"repaint_strength": "1"}, "repaint_strength", 1
    ),
    "repaint_latent_crossfade_frames": (
        ["--repaint-latent-crossfade", "9"], {"repaint_latent_crossfade": 9},
        "repaint_latent_crossfade_frames", 9,
    ),
    "repaint_wav_crossfade_sec": (
        ["--repaint-wav-crossfade", "0.2"], {"repaint_wav_crossfade": 0.2},
        "repaint_wav_crossfade_sec", 0.2,
    ),
    "audio_cover_strength": (
        ["--cover-strength", "0.3"], {"cover_strength": 0.3}, "cover_strength", 0.3
    ),
    "thinking": (["--think"], {"thinking": True}, "codes", True),
    "lm_temperature": (["--lm-temperature", "0"], {"lm_temperature": 0}, "temperature", 0),
    "lm_cfg_scale": (["--lm-guidance-scale", "1"], {"lm_guidance": 1}, "guidance_scale", 1),
    "lm_top_k": (["--lm-top-k", "5"], {"lm_top_k": 5}, "top_k", 5),
    "lm_top_p": (["--lm-top-p", "1"], {"lm_top_p": 1}, "top_p", 1),
    "lm_negative_prompt": (
        ["--lm-negative-prompt", "hum"], {"lm_negative_prompt": "hum"}, "negative_prompt", "hum"
    ),
    "use_cot_metas": (["--keep", "metas"], {"fill_in": False}, "metas", False),
    "use_cot_caption": (["--keep", "caption,metas"], {"rewrite": False}, "caption", False),
    "use_cot_language": (["--keep", "language"], {"name_language": False}, "language", False),
    "use_constrained_decoding": (
        ["--lm-unconstrained"], {"lm_constrained": False}, "constrained", False
    ),
    "track_name": (["--track", "vocals"], {"track": "vocals"}, "track_name", "vocals"),
    "complete_track_classes": (
        ["--tracks", "drums, bass"], {"tracks": "drums,bass"}, "track_classes", ("drums", "bass")
    ),
}  # fmt: skip
# The same of `GenerationConfig`: the field; options; form values; what it is then.
CONFIGURED: dict[str, tuple[list[str], dict[str, Any], Any]] = {
    "audio_format": (["--format", "wav"], {"audio_format": "wav"}, "wav"),
    "audio_bit_depth": (["--bit-depth", "16"], {"bit_depth": "16"}, 16),
    "audio_bitrate": (
        ["--format", "mp3", "--bitrate", "192"], {"audio_format": "mp3", "bitrate": "192"}, 192
    ),
    "audio_loudness": (["--loudness", "-14.5"], {"loudness": "-14.5"}, -14.5),
}  # fmt: skip
# How many songs and from which seeds, tested with the seeds; how the planner goes about it; what
# becomes of songs that are too long, tested with the limits.
NOT_OF_FILES = {
    "batch_size", "use_random_seed", "seeds", "allow_lm_batch", "lm_batch_chunk_size", "fit",
}  # fmt: skip
OF_PLANNING = ("thinking", *(name for name in FIELDS if name.startswith(("lm_", "use_co"))))

# Files, which the doors take in their own ways; tested there.
AUDIO = ("src_audio", "reference_audio")
# A batch loads no language model: lines may name these, and it is said that nothing comes of it.
NOT_IN_A_BATCH = OF_PLANNING
# The form stays short: what few ask for is in the page's API alone.
API_ONLY = {
    "instruction", "codes", "repaint_latent_crossfade", "repaint_wav_crossfade",
    "guidance_start", "guidance_end", "rewrite", "fill_in", "name_language", "lm_temperature",
    "lm_guidance", "lm_top_k", "lm_top_p", "lm_negative_prompt", "lm_constrained",
}  # fmt: skip


def request_of(params: GenerationParams, seeds: Any = None) -> Request:
    return words_and_numbers(params, GenerationConfig(batch_size=1, seeds=seeds))


def field_of(request: Request, name: str, field: str) -> Any:
    return getattr(request.planning if name in OF_PLANNING else request, field)


def test_every_field_is_in_the_table() -> None:
    assert {*ASKED, *AUDIO} == set(FIELDS)
    configured = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert {*CONFIGURED, *NOT_OF_FILES} == configured


@pytest.mark.parametrize("name", CONFIGURED)
def test_the_kind_of_file_at_every_door(name: str) -> None:
    options, values, expected = CONFIGURED[name]

    def asked_for(options: list[str], values: dict[str, Any]) -> list[Any]:
        parsed = build_parser().parse_args(["generate", "x", *options])
        path = file_options.name(parsed.output, parsed.format)
        lines = build_parser().parse_args(["batch", "p.jsonl", "-o", "out", *options])
        configs = (
            file_options.config(parsed, path, songs=1),
            batch.setting_of(lines).config(seed=1),
            SongRequest.of({"prompt": "x", **values}).params()[1],
        )
        return [getattr(config, name) for config in configs]

    assert asked_for(options, values) == [expected] * 3
    left = getattr(GenerationConfig(), name)
    assert left != expected
    assert asked_for([], {}) == [left] * 3
    assert set(values) <= set(inspect.signature(Api.generate).parameters)


def test_the_kind_of_file_is_understood_as_people_write_it() -> None:
    config = GenerationConfig(
        audio_format="WAV", audio_bit_depth="24", audio_bitrate="", audio_loudness=" -14 "
    )
    assert (config.encoding().kind, config.encoding().bits) == ("wav", 24)
    assert config.target_loudness() == -14
    assert GenerationConfig(audio_loudness="N/A").target_loudness() is None
    with pytest.raises(RequestError, match="loudness"):
        GenerationConfig(audio_loudness="loud").target_loudness()


@pytest.mark.parametrize("name", ASKED)
def test_the_command_line(name: str) -> None:
    options, _, field, expected = ASKED[name]
    parsed = build_parser().parse_args(["generate", "x", *options])
    request = request_of(song_options.params(parsed))
    assert field_of(request, name, field) == expected
    plain = request_of(song_options.params(build_parser().parse_args(["generate", "y"])))
    assert field_of(plain, name, field) != expected


@pytest.mark.parametrize("name", ASKED)
def test_the_page_and_its_api(name: str) -> None:
    _, values, field, expected = ASKED[name]
    request = request_of(SongRequest.of({"prompt": "x", **values}).params()[0])
    assert field_of(request, name, field) == expected
    plain = request_of(SongRequest.of({"prompt": "y"}).params()[0])
    assert field_of(plain, name, field) != expected
    taken = inspect.signature(Api.generate).parameters
    assert set(values) <= set(taken)


@pytest.mark.parametrize("name", sorted(set(ASKED) - set(NOT_IN_A_BATCH)))
def test_a_line_of_a_batch(name: str, tmp_path: Path) -> None:
    options, _, field, expected = ASKED[name]
    parsed = song_options.params(build_parser().parse_args(["generate", "x", *options]))
    line = {"caption": "x", name: getattr(parsed, name)}
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(line), encoding="utf-8")
    (job,) = read_jobs(file)
    request = request_of(GenerationParams.of(job.params), [job.params["seed"]])
    assert field_of(request, name, field) == expected


HTTP = {(field.where, field.attribute): field.name for field in http.FIELDS}


@pytest.mark.parametrize("name", ASKED)
def test_the_http_api(name: str) -> None:
    options, _, field, expected = ASKED[name]
    parsed = song_options.params(build_parser().parse_args(["generate", "x", *options]))
    sent = {"prompt": "x", "batch_size": 1, HTTP[http.PARAMS, name]: getattr(parsed, name)}
    made = words_and_numbers(*understood(json.loads(json.dumps(sent))).built())
    assert field_of(made, name, field) == expected
    plain = words_and_numbers(*understood({"prompt": "y"}).built())
    assert field_of(plain, name, field) != expected


@pytest.mark.parametrize("name", CONFIGURED)
def test_the_kind_of_file_over_http(name: str) -> None:
    _, values, expected = CONFIGURED[name]
    given = {"audio_format": values.get("audio_format", "wav"), HTTP[http.CONFIG, name]: expected}
    assert getattr(understood({"prompt": "x", **given}).built()[1], name) == expected
    assert getattr(understood({"prompt": "x"}).built()[1], name) != expected


def test_http_has_a_name_for_every_field() -> None:
    asked = {(http.PARAMS, name) for name in ASKED}
    asked |= {(http.CONFIG, name) for name in (*CONFIGURED, *NOT_OF_FILES)}
    assert asked == {key for key in HTTP if key[0] != http.SERVER}
    assert set(http.UPLOADS) == set(AUDIO)


def test_the_form_has_every_field_or_the_api_does() -> None:
    ours = {field.name for field in dataclasses.fields(SongRequest)}
    assert set(form.FIELDS) | API_ONLY == ours
    assert not set(form.FIELDS) & API_ONLY
    taken = {"source": "source_file", "reference": "reference_file"}
    named = {taken.get(name, name) for name in inspect.signature(Api.generate).parameters}
    assert named - {"self", "request"} == ours


def test_few_bits_at_every_door() -> None:
    """Command line, batch, page, HTTP and Python; the bare command hands it on."""
    parse = build_parser().parse_args
    told = [
        parse(["generate", "x", "--quantize", "int8_weight_only"]).quantize,
        parse(["inspire", "x", "--quantize", "int8"]).quantize,
        parse(["bench", "--quantize", "int8"]).quantize,
        batch.setting_of(
            parse(["batch", "p.jsonl", "-o", "out", "--quantize", "INT8"])
        ).quantization,
        PageOptions.of(vars(parse(["--quantize", "int8"]))).choice.policy().quantization,
        from_environment(
            {"quantize": parse(["serve", "--quantize", "int8"]).quantize}, {}
        ).quantize,
        from_environment({}, {"ACESTEP_QUANTIZATION": "int8_weight_only"}).quantize,
    ]
    assert told == ["int8"] * len(told)
    options = ServerOptions(quantize="int8", devices=("cpu",))
    assert Engines("cpu", options).policy.quantization == "int8"
    start = Choice(quantize="fp8", flash_attention=True)
    for shown, meant in (("int8", "int8"), ("none", None)):
        panel = service.chosen(("demo", "cpu", "", "auto", "none", "auto", shown), start)
        assert panel.quantize == meant
        assert panel.flash_attention
    for command in (["generate", "x"], ["batch", "p", "-o", "o"], ["bench"], ["serve"], []):
        assert parse(command).quantize is None
    for method in (AceStepHandler.initialize_service, LLMHandler.initialize):
        assert "quantization" in inspect.signature(method).parameters
    with pytest.raises(SystemExit):
        parse(["generate", "x", "--quantize", "int3"])


def test_the_engine_at_every_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line, batch, page, HTTP and Python; nothing said is `auto`, and the variable's."""
    parse = build_parser().parse_args
    told = [
        parse([*command, "--engine", "MLX"]).engine
        for command in (
            [], ["generate", "x"], ["inspire", "x"], ["understand", "x"], ["align", "x", "--lyrics", "y"],
            ["bench"], ["serve"],
        )
    ]  # fmt: skip
    told += [
        batch.setting_of(parse(["batch", "p.jsonl", "-o", "out", "--engine", "mlx"])).engine,
        PageOptions.of(vars(parse(["--engine", "mlx"]))).choice.policy().engine,
        from_environment({"engine": parse(["serve", "--engine", "mlx"]).engine}, {}).engine,
        Engines("cpu", ServerOptions(engine="mlx", devices=("cpu",))).policy.engine,
        service.chosen(("demo", "cpu", "", "auto", "none", "mlx", "none"), Choice())
        .policy()
        .engine,
    ]
    assert told == ["mlx"] * len(told)
    for command in (["generate", "x"], ["batch", "p", "-o", "o"], ["bench"], []):
        assert parse(command).engine == "auto"
    assert from_environment({"engine": parse(["serve"]).engine}, {}).engine == "auto"
    for method in (AceStepHandler.initialize_service, LLMHandler.initialize):
        assert list(inspect.signature(method).parameters)[-1] == "engine"
    monkeypatch.setenv("ACESTEP_ENGINE", "mlx")
    assert Choice(device="cpu").policy().engine_name == "mlx-cpu"
    assert Choice(device="cpu", engine="torch").policy().engine_name == "torch"


def test_defaults_say_the_same_everywhere() -> None:
    """Nothing said at any door is one request; steps, guidance and shift are the checkpoint's."""
    parsed = build_parser().parse_args(["generate", "x"])
    said = [
        song_options.params(parsed),
        SongRequest.of({"prompt": "x"}).params()[0],
        GenerationParams.of({"caption": "x"}),
    ]
    made = [dataclasses.replace(request_of(params, [1]), duration=None) for params in said]
    thinking = dataclasses.replace(made[2].planning, codes=False)
    assert made[0] == made[1] == dataclasses.replace(made[2], planning=thinking)
    for name, parameter in inspect.signature(Api.generate).parameters.items():
        if name in SongRequest.__dataclass_fields__ and name != "prompt":
            assert parameter.default == SongRequest.__dataclass_fields__[name].default, name


def test_the_handlers_own_method_takes_what_concerns_the_song() -> None:
    names = {
        "task_type": "task_type", "caption": "captions", "keyscale": "key_scale",
        "timesignature": "time_signature", "duration": "audio_duration",
        "audio_codes": "audio_code_string",
    }  # fmt: skip
    taken = inspect.signature(AceStepHandler.generate_music).parameters
    for name in set(FIELDS) - set(OF_PLANNING) - {"instrumental"}:
        assert names.get(name, name) in taken, name
    for name in ("inference_steps", "guidance_scale", "shift"):
        assert taken[name].default is None
