"""Songs through the Python API: every task, the same on every device, and nothing left behind."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.entrypoints import covers
from conformance.suite.support import (
    SAMPLE_RATE,
    SECONDS,
    Api,
    generate,
    initialised,
    song,
    tone,
    torch_engine,
)
from conformance.targets import Target

TURBO_TASKS = ("text2music", "repaint", "cover")
SAME_SONG = 1e-3
CODES = "".join(f"<|audio_code_{n}|>" for n in (5, 900, 63))


@covers(
    "A1",
    "A3",
    "inference:generate_music",
    "inference:run",
    "inference:make_request",
    "song.records:describe",
    "handler:AceStepHandler.generate",
    "handler:AceStepHandler.gpu_config",
    "diffusion.denoise:check_latents",
    "song.level:normalized",
    "song.outcome:extra_outputs",
    "song.progress:Report",
    "song.progress:Report.part",
    "song.progress:Clock",
    "song.progress:share",
    "song.ignored:ignored",
    "song.limits:Room.at_once",
    "song.limits:Room.longest",
    "song.limits:Room.spare",
    "song.limits:together",
    "song.limits:turns",
    "song.limits:within",
    "diffusion.conditions:Conditioner.context",
    "diffusion.conditions:Conditioner.encoded",
    "diffusion.denoise:*",
    "diffusion.lengths:*",
    "diffusion.making:Maker.make",
    "diffusion.prompts:instruction_of",
    "diffusion.prompts:lyric_ids",
    "diffusion.prompts:lyrics_text",
    "diffusion.prompts:prompt_text",
    "diffusion.prompts:text_ids",
    "diffusion.schedule:Schedule.*",
    "diffusion.schedule:moved_times",
    "diffusion.unheard:unheard",
    "engines.protocol:Traits.frame_rate",
    "engines.protocol:lasting",
    "engines.torch.denoiser:Denoiser.velocity",
    "engines.torch.engine:TorchEngine.advance",
    "engines.torch.engine:TorchEngine.after_step",
    "engines.torch.engine:TorchEngine.array",
    "engines.torch.engine:TorchEngine.decode",
    "engines.torch.engine:TorchEngine.encode_timbre",
    "engines.torch.engine:TorchEngine.encode_words",
    "engines.torch.engine:TorchEngine.host",
    "engines.torch.engine:TorchEngine.leave",
    "engines.torch.engine:TorchEngine.silence",
    "engines.torch.engine:TorchEngine.tokenizer",
    "engines.torch.engine:TorchEngine.velocity",
    "engines.torch.engine:TorchEngine.working",
    "engines.torch.engine:TorchEngine.xp",
    "engines.torch.pipeline:Pipeline.prompt_encoder",
    "engines.torch.pipeline:Pipeline.steps",
    "song.level:checked_peak",
    "song.outcome:Song.seconds",
    "vae.windows:chunk_frames_of",
    "vae.windows:windows",
    "engines.torch.transformer:StepTransformer.condition",
    "engines.torch.transformer:StepTransformer.context",
    "engines.torch.transformer:StepTransformer.times",
    "song.request:Request.batch_size",
    "song.request:Request.check_words_and_numbers",
    "song.request:Request.has_codes",
    "song.request:Request.limited",
    "song.request:Request.resolved",
    "song.request:Request.seconds",
    "song.request:Request.validated",
    "engines.torch.codec:decode",
)
@covers(
    "handler:AceStepHandler.defaults",
    "song.defaults:kind_of",
    "song.languages:code_of",
    "song.normalise:*",
    "song.params:words_and_numbers",
    "song.seeds:completed",
)
def test_text_to_music(api: Api, target: Target, handler: Any) -> None:
    told: list[float] = []
    result = api.get("inference:generate_music")(
        handler,
        None,
        api.get("inference:GenerationParams")(
            caption="calm jazz nobody asked for",
            lyrics="[verse]\nla la",
            duration=0.7,
            inference_steps=2,
            bpm=90,
        ),
        api.get("inference:GenerationConfig")(batch_size=2, seeds=[3, 4]),
        progress=lambda fraction, desc="": told.append(fraction),
    )
    audio = song(result)
    assert audio.shape[1] == pytest.approx(0.7 * SAMPLE_RATE, abs=SAMPLE_RATE / 25)
    assert audio.device.type == "cpu"
    assert len({item["seed"] for item in result.audios}) == len(result.audios)
    assert told == sorted(told)


@covers(
    "A1",
    "A3",
    "inference:generate_music",
    "song.records:save_song",
    "engines.torch.codec:encode",
    "engines.torch.engine:TorchEngine.encode",
    "diffusion.prompts:plainly",
)
@pytest.mark.parametrize("task", ["cover", "repaint"])
def test_tasks_on_audio(api: Api, target: Target, handler: Any, task: str, tmp_path: Path) -> None:
    """What every checkpoint can do with audio, saved as a file."""
    weak = {"audio_cover_strength": 0.5}
    made = api.get("inference:GenerationParams")(**on_audio(task), **weak)
    config = api.get("inference:GenerationConfig")(batch_size=1, audio_format="wav")
    result = api.get("inference:generate_music")(handler, None, made, config, save_dir=tmp_path)
    assert song(result).shape[1] == pytest.approx(0.6 * SAMPLE_RATE, abs=SAMPLE_RATE / 25)
    assert Path(result.audios[0]["path"]).is_file()


@covers("A1", "A3", "diffusion.repaint:*", "song.request:Request.repainted")
def test_repaint_keeps_the_source(api: Api, target: Target, handler: Any) -> None:
    """Outside range and crossfade the samples are the source's own, at its own level."""
    source = 0.5 * tone(6.0)
    params = on_audio("repaint") | {
        "src_audio": source, "repainting_start": 2.0, "repainting_end": 3.0,
    }  # fmt: skip
    audio = song(generate(api, handler, **params))
    assert audio.shape == source.shape
    for kept in (slice(0, int(1.9 * SAMPLE_RATE)), slice(int(3.1 * SAMPLE_RATE), None)):
        assert torch.equal(audio[:, kept], source[:, kept])
    made = slice(int(2.2 * SAMPLE_RATE), int(2.8 * SAMPLE_RATE))
    assert not torch.allclose(audio[:, made], source[:, made], atol=1e-3)


@covers("A1", "A3", "inference:generate_music")
@pytest.mark.parametrize("task", ["extract", "lego", "complete"])
def test_tasks_of_base_checkpoints(api: Api, target: Target, handler: Any, task: str) -> None:
    """Made where the checkpoint can, and refused in a line that names the task where not."""
    result = generate(api, handler, **on_audio(task))
    if task in getattr(handler, "tasks", TURBO_TASKS):
        song(result)
    else:
        assert not result.success
        assert task in result.error


def on_audio(task: str) -> dict[str, Any]:
    """Parameters for a task on 0.6 s of audio."""
    return {
        "task_type": task,
        "src_audio": tone(0.6),
        "caption": "piano",
        "track_name": "vocals",
        "repainting_start": 0.2,
        "repainting_end": 0.5,
        "inference_steps": 2,
        "thinking": False,
        "seed": 5,
    }


@covers(
    "A1",
    "A3",
    "handler:AceStepHandler.generate_music",
    "engines.torch.engine:TorchEngine.latents_of",
    "engines.torch.offloading:bring",
    "song.request:audio_codes_in",
)
def test_codes_and_a_reference(api: Api, target: Target, xl: Any) -> None:
    """The handler's own method, from audio codes and with a timbre to follow.

    A timbre is heard in half a minute of audio; a narrow checkpoint reads it as a wide one does.
    """
    result = xl.generate_music(
        captions="piano",
        audio_code_string=CODES,
        audio_duration=0.6,
        reference_audio=tone(0.3),
        inference_steps=2,
        infer_method="sde",
        seed=9,
        use_random_seed=False,
    )
    assert result["success"], result["error"]
    assert torch.isfinite(result["audios"][0]["tensor"]).all()


@covers("A1", "inference:generate_music")
def test_the_same_seed_is_the_same_song(api: Api, target: Target) -> None:
    """In float32 a seed gives on every target what it gives on the CPU."""
    options = {"dtype": "float32"}
    host = initialised(api, "cpu", **options, **torch_engine(target))
    alike = target.device == "cpu" and target.engine == "torch"
    there = host if alike else initialised(api, target.device, **options)
    reference = song(generate(api, host, seed=11))
    assert (song(generate(api, there, seed=11)) - reference).abs().max() <= SAME_SONG
    assert (song(generate(api, there, seed=12)) - reference).abs().max() > SAME_SONG


def live_bytes() -> Counter[str]:
    """Bytes of all tensors alive, by device."""
    gc.collect()
    total: Counter[str] = Counter()
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type != "meta":
            total[thing.device.type] += thing.nbytes
    if (mlx := sys.modules.get("mlx.core")) is not None:
        total["mlx"] = mlx.get_active_memory()
    return total


@covers("A1", "inference:generate_music")
def test_memory_does_not_grow(api: Api, target: Target, handler: Any) -> None:
    """After the first, another song leaves nothing more on the device or the host."""
    generate(api, handler, seed=1)
    before = live_bytes()
    for seed in (2, 3):
        song(generate(api, handler, seed=seed))
    assert live_bytes() == before


@covers("A1", "handler:AceStepHandler.cancel", "song.progress:Report")
def test_a_cancelled_song_leaves_the_handler_usable(api: Api, target: Target, handler: Any) -> None:
    def stop(fraction: float, desc: str = "") -> None:
        handler.cancel()

    made = api.get("inference:GenerationParams")(caption="x", duration=SECONDS, seed=1)
    config = api.get("inference:GenerationConfig")(batch_size=1)
    result = api.get("inference:generate_music")(handler, None, made, config, progress=stop)
    assert not result.success
    song(generate(api, handler))


@covers("A1", "A3", "inference:generate_music")
@settings(max_examples=4)
@given(
    lyrics=st.text(max_size=40).filter(lambda text: "\x00" not in text),
    seed=st.integers(0, 2**63 - 1),
    frames=st.integers(13, 30),
)
def test_any_lyrics_seed_and_length(
    api: Api, target: Target, handler: Any, lyrics: str, seed: int, frames: int
) -> None:
    seconds = frames / 25
    result = generate(api, handler, lyrics=lyrics, seed=seed, duration=seconds, inference_steps=1)
    assert song(result).shape[1] == pytest.approx(seconds * SAMPLE_RATE, abs=1920)


@covers("inference:generate_music")
@pytest.mark.parametrize(
    "fields",
    [
        {"duration": -2},
        {"duration": 1e9},
        {"duration": float("nan")},
        {"task_type": "karaoke"},
        {"task_type": "cover"},
        {"inference_steps": 0},
        {"keyscale": "H dur"},
        {"caption": " "},
    ],
    ids=str,
)
def test_bad_requests_are_told(
    api: Api, target: Target, handler: Any, fields: dict[str, Any]
) -> None:
    """What cannot be made is refused in one line, and the handler goes on working."""
    result = generate(api, handler, **fields)
    assert not result.success
    assert result.error
    assert len(result.error.splitlines()) == 1
