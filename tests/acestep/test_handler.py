"""Tests of the handler: equality with diffusers, tasks, placement, failure, threads."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_oobleck import (
    OobleckDiagonalGaussianDistribution,
)

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.device import resolve
from acestep.diffusion.denoise import check_latents
from acestep.engines.torch import wave_decoder
from acestep.engines.torch.offloading import bring
from acestep.errors import CancelledError, DeviceError, GenerationError, RequestError
from acestep.handler import AceStepHandler
from acestep.song import level
from acestep.song.request import Request

LYRICS = "[verse]\nla la\n[chorus]\nla"
ROUNDING = 3e-4
"""Of latents whose values reach several units, after the trained weights have worked on it: those
of version 5 make 4.5e-5 of it with one thread, and 1.6e-4 with two."""


def expected_latents(pipeline: Any, seed: int, **arguments: Any) -> torch.Tensor:
    """What diffusers' pipeline gives from the same seed, with the VAE's mean in place of a draw."""
    with pytest.MonkeyPatch.context() as patch:
        posterior = OobleckDiagonalGaussianDistribution
        patch.setattr(posterior, "sample", lambda self, generator=None: self.mean)
        output = pipeline(
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            **arguments,
        )
    latents: torch.Tensor = output.audios
    return latents


@pytest.mark.parametrize("seconds", [6.0, 7.2])
def test_text2music_equals_diffusers(
    handler: AceStepHandler, diffusers_pipeline: Any, seconds: float
) -> None:
    request = Request(
        "warm lo-fi piano", (7,), LYRICS, seconds, 90, "C major", "4", "en", steps=4, shift=3.0
    )
    made = handler.generate(request)
    expected = expected_latents(
        diffusers_pipeline,
        7,
        prompt="warm lo-fi piano",
        lyrics=LYRICS,
        audio_duration=seconds,
        bpm=90,
        keyscale="C major",
        timesignature="4",
        vocal_language="en",
        num_inference_steps=4,
        shift=3.0,
    )
    torch.testing.assert_close(made.tensors["pred_latents"], expected, atol=ROUNDING, rtol=0)
    whole = diffusers_pipeline.vae.decode(expected.transpose(1, 2)).sample
    audio = level.normalized(whole)[0]
    torch.testing.assert_close(made.songs[0].audio, audio, atol=2e-4, rtol=0)
    assert made.songs[0].seconds == seconds


def test_cover_equals_diffusers(
    handler: AceStepHandler, diffusers_pipeline: Any, song: torch.Tensor
) -> None:
    song = song.repeat(1, 3)
    request = Request("violin", (3,), task="cover", src_audio=song, steps=3, shift=1.0)
    made = handler.generate(request)
    expected = expected_latents(
        diffusers_pipeline,
        3,
        prompt="violin",
        task_type="cover",
        src_audio=song,
        audio_duration=6.0,
        num_inference_steps=3,
        shift=1.0,
        vocal_language="unknown",
    )
    torch.testing.assert_close(made.tensors["pred_latents"], expected, atol=ROUNDING, rtol=0)


def test_repaint_keeps_the_rest_of_the_source(handler: AceStepHandler, song: torch.Tensor) -> None:
    """Sample for sample outside range and crossfade, and no louder than it was."""
    source = song.repeat(1, 3) * 0.4
    request = Request("drums", (9,), task="repaint", src_audio=source, repaint=(2.0, 4.0), steps=3)
    made = handler.generate(request).songs[0].audio
    fade = round(0.025 * 48000)
    assert made.shape == source.shape
    for kept in (slice(0, 96000 - fade), slice(192000 + fade, None)):
        assert torch.equal(made[:, kept], source[:, kept])
    assert not torch.allclose(made[:, 96000:192000], source[:, 96000:192000], atol=1e-2)
    # At the seams nothing jumps further than the source or the new part do by themselves.
    steps = made.diff(dim=1).abs().amax(dim=0)
    seams = torch.cat([steps[94000:96000], steps[192000:194000]])
    assert seams.max() <= max(steps[:94000].max(), steps[96000:192000].max())


def test_a_range_beyond_the_source_makes_it_longer(
    handler: AceStepHandler, song: torch.Tensor
) -> None:
    source = song.repeat(1, 3)
    request = Request("x", (9,), task="repaint", src_audio=source, repaint=(-1.0, 0.5), steps=1)
    before = handler.generate(request).songs[0].audio
    assert before.shape == (2, 7 * 48000)
    fade = round(0.025 * 48000)
    assert torch.equal(before[:, 72000 + fade :], source[:, 24000 + fade :])
    request = dataclasses.replace(request, repaint=(5.0, 8.0))
    after = handler.generate(request).songs[0].audio
    assert after.shape == (2, 8 * 48000)
    assert torch.equal(after[:, : 240000 - fade], source[:, : 240000 - fade])


@pytest.mark.parametrize("seconds", [2, 35])
def test_a_reference_is_heard_at_three_places(
    base_handler: AceStepHandler, base_pipeline: Any, song: torch.Tensor, seconds: int
) -> None:
    """A short one is repeated; of a long one the start, middle and end count."""
    noise = torch.rand(2, seconds * 48000, generator=torch.Generator().manual_seed(1)) - 0.5
    request = Request(
        "harp", (2,), task="complete", src_audio=song.repeat(1, 3), steps=1, shift=1.0,
        reference_audio=noise, guidance_scale=1.0,
    )  # fmt: skip
    expected = expected_latents(
        base_pipeline,
        2,
        prompt="harp",
        task_type="complete",
        src_audio=song.repeat(1, 3),
        audio_duration=6.0,
        reference_audio=noise,
        num_inference_steps=1,
        shift=1.0,
        vocal_language="unknown",
    )
    latents = base_handler.generate(request).tensors["pred_latents"]
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


def test_guided_base_model_equals_diffusers(
    base_handler: AceStepHandler, base_pipeline: Any
) -> None:
    request = Request(
        "organ",
        (5,),
        duration=6.0,
        steps=3,
        shift=1.0,
        guidance_scale=4.0,
        cfg_interval=(0.5, 1.0),
    )
    made = base_handler.generate(request)
    expected = base_pipeline(
        prompt="organ",
        audio_duration=6.0,
        guidance_scale=4.0,
        # diffusers counts the interval from the noise, the original by the time itself.
        cfg_interval_end=0.5,
        num_inference_steps=3,
        shift=1.0,
        vocal_language="unknown",
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).audios
    torch.testing.assert_close(made.tensors["pred_latents"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_six_tasks_on_a_base_model(
    base_handler: AceStepHandler, song: torch.Tensor, task: str
) -> None:
    source = None if task == "text2music" else song
    request = Request(
        "bells", (1,), duration=2.0, task=task, src_audio=source, steps=2, track_name="vocals",
        track_classes=("drums", "bass"),
    )  # fmt: skip
    made = base_handler.generate(request)
    audio = made.songs[0].audio
    assert audio.shape == (2, 96000)
    assert audio.isfinite().all()
    assert audio.abs().max() == pytest.approx(level.PEAK)
    # The source must matter, and the instruction too.
    assert base_handler.tasks == ALL_TASKS


def test_turbo_does_three_tasks(handler: AceStepHandler, song: torch.Tensor) -> None:
    assert handler.tasks == ("text2music", "repaint", "cover")
    result = handler.generate_music("x", task_type="extract", src_audio=song)
    assert not result["success"]
    assert "it can do: text2music, repaint, cover" in result["error"]


def test_batch_items_are_the_songs_of_their_seeds(
    handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "80")
    request = Request("flute", (11, 12), duration=0.6, steps=2)
    both = handler.generate(request).tensors["pred_latents"]
    for number, seed in enumerate(request.seeds):
        alone = handler.generate(dataclasses.replace(request, seeds=(seed,)))
        torch.testing.assert_close(
            alone.tensors["pred_latents"][0], both[number], atol=ROUNDING, rtol=0
        )
    assert not torch.allclose(both[0], both[1])


def test_limits_of_a_tier_clamp_with_a_warning(
    handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "4")
    made = handler.generate(Request("flute", (1, 2), duration=0.6))
    assert len(made.songs) == 1
    assert made.warnings == [
        "a batch of 2 is above the limit of 1 for tier1 (4.0 GB of accelerator memory); making 1"
    ]


def test_sde_follows_the_seed_and_differs_from_ode(handler: AceStepHandler) -> None:
    request = Request("cello", (8,), duration=0.6, steps=4, infer_method="sde")
    first, second = (handler.generate(request).tensors["pred_latents"] for _ in range(2))
    assert torch.equal(first, second)
    ode = handler.generate(dataclasses.replace(request, infer_method="ode"))
    assert not torch.allclose(first, ode.tensors["pred_latents"], atol=1e-2)
    one_step = dataclasses.replace(request, steps=1)
    same = handler.generate(dataclasses.replace(one_step, infer_method="ode"))
    # With a single step there is no noise left to renew.
    torch.testing.assert_close(
        handler.generate(one_step).tensors["pred_latents"],
        same.tensors["pred_latents"],
        atol=1e-5,
        rtol=0,
    )


def test_explicit_timesteps(handler: AceStepHandler) -> None:
    plain = handler.generate(Request("cello", (8,), duration=0.6, steps=2, shift=1.0))
    listed = handler.generate(Request("cello", (8,), duration=0.6, timesteps=(1.0, 0.5)))
    assert torch.equal(plain.tensors["pred_latents"], listed.tensors["pred_latents"])


def test_audio_codes_set_the_length(handler: AceStepHandler) -> None:
    made = handler.generate(Request("oboe", (1,), audio_codes="<|audio_code_5|>" * 10, steps=1))
    assert made.songs[0].seconds == 2.0


def test_extra_outputs(handler: AceStepHandler) -> None:
    result = handler.generate_music(
        "waltz", LYRICS, seed=4, use_random_seed=False, audio_duration=0.6, inference_steps=2,
        vocal_language="en",
    )  # fmt: skip
    assert result["success"], result["error"]
    assert [audio["seed"] for audio in result["audios"]] == [4]
    extra = result["extra_outputs"]
    # The model makes 5.12 s at least.
    assert extra["pred_latents"].shape == (1, 128, 8)
    assert extra["latents"] is extra["pred_latents"]
    assert extra["context_latents"].shape == (1, 128, 16)
    assert (extra["duration"], extra["latent_duration"]) == (0.6, 5.12)
    assert extra["encoder_hidden_states"].ndim == 3
    tokenizer = handler.pipeline.tokenizer  # type: ignore[union-attr]
    text = tokenizer.decode(extra["lyric_token_ids"])
    assert text == f"# Languages\nen\n\n# Lyric\n{LYRICS}<|endoftext|>"
    assert set(extra["time_costs"]) == {"diffusion", "decoding"}
    assert extra["peak_memory_gib"] > 0


def test_progress_runs_from_zero_to_one(handler: AceStepHandler) -> None:
    seen: list[tuple[float, str]] = []
    handler.generate(
        Request("waltz", (1,), duration=0.6, steps=3),
        lambda fraction, desc: seen.append((fraction, desc)),
    )
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert "step 2/3" in [text for _, text in seen]


def test_cancel_stops_at_the_next_step_and_the_next_request_runs(
    handler: AceStepHandler,
) -> None:
    steps: list[str] = []

    def progress(fraction: float, desc: str) -> None:
        steps.append(desc)
        if desc == "step 2/6":
            handler.cancel()

    request = Request("waltz", (1,), duration=0.6, steps=6)
    with pytest.raises(CancelledError):
        handler.generate(request, progress)
    assert steps[-1] == "step 2/6"
    assert len(handler.generate(request).songs) == 1


def test_threads_take_turns(handler: AceStepHandler) -> None:
    """Without the lock the shared pipeline would mix the songs' noise."""
    requests = [Request("waltz", (seed,), duration=0.6, steps=2) for seed in range(6)]
    alone = [handler.generate(request).tensors["pred_latents"] for request in requests]
    together: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        together[number] = handler.generate(requests[number]).tensors["pred_latents"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, latents in enumerate(alone):
        assert torch.equal(together[number], latents)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"config_path": "no-such-model"}, "no checkpoint folder 'no-such-model'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"quantization": "int3"}, "unknown quantization 'int3'"),
        ({"offload_to_cpu": True}, "offloading is pointless on cpu"),
        ({"offload_dit_to_cpu": True}, "offloading is pointless on cpu"),
        ({"use_flash_attention": True}, "it does not run on cpu"),
        ({"dtype": "int4"}, "unknown dtype"),
    ],
)
def test_a_failed_initialize_leaves_the_handler_as_it_was(
    handler: AceStepHandler, options: dict[str, Any], expected: str
) -> None:
    before = (handler.pipeline, handler.policy, handler.checkpoint, handler.offload)
    arguments: dict[str, Any] = {"config_path": "demo", "device": "cpu", **options}
    message, ok = handler.initialize_service(None, **arguments)
    assert not ok
    assert expected in message
    assert (handler.pipeline, handler.policy, handler.checkpoint, handler.offload) == before
    fresh = AceStepHandler()
    assert not fresh.initialize_service(None, **arguments)[1]
    assert fresh.pipeline is None
    assert fresh.tasks == ()


def test_an_empty_handler_says_what_to_do() -> None:
    handler = AceStepHandler()
    assert handler.status() == "no checkpoint is loaded"
    assert handler.device == "cpu"
    assert handler.dtype == torch.float32
    result = handler.generate_music("x")
    assert result["error"] == "no checkpoint is loaded; call initialize_service first"


@pytest.mark.parametrize("offload", ["dit", "all"])
def test_offloading_changes_nothing_but_the_place(
    base_folder: Any, base_handler: AceStepHandler, offload: str
) -> None:
    """The hooks run with the host in the device's part; on CUDA they move the weights too."""
    handler = AceStepHandler()
    separate = dataclasses.replace(resolve("cpu"), unified_memory=False)
    handler.load(str(base_folder), separate, offload=offload)
    assert "offloaded" in handler.status()
    request = Request("harp", (1,), duration=0.6, steps=2, audio_codes="<|audio_code_9|>" * 3)
    for _ in range(2):
        made, plain = (h.generate(request).tensors["pred_latents"] for h in (handler, base_handler))
        assert torch.equal(made, plain)
    handler.unload()


def test_unload_and_load_again(base_folder: Any) -> None:
    handler = AceStepHandler()
    seen: list[str] = []
    message, ok = handler.initialize_service(
        None, str(base_folder), "cpu", progress=lambda fraction, desc: seen.append(desc)
    )
    assert ok
    assert message.startswith("acestep-v15-base-tiny on cpu (dit float32")
    assert "loading transformer" in seen
    handler.unload()
    assert handler.pipeline is None
    assert handler.initialize_service(None, str(base_folder), "cpu", dtype="bfloat16")[1]
    assert handler.dtype == torch.bfloat16
    made = handler.generate(Request("harp", (1,), duration=0.6, steps=2))
    assert made.songs[0].audio.dtype == torch.float32


def test_available_models(handler: AceStepHandler, tmp_path: Any) -> None:
    folder = tmp_path / "checkpoints" / "acestep-v15-mine"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    assert handler.get_available_acestep_v15_models()[0] == "acestep-v15-mine"
    assert handler.get_available_acestep_v15_models()[-1] == "demo"
    assert handler.get_available_checkpoints() == ["checkpoints"]
    assert not handler.is_flash_attention_available()


@pytest.mark.parametrize(
    ("tensor_device", "target", "expected"),
    [
        ("cpu", "cpu", True),
        ("cpu", "CPU:0", True),
        ("cpu", torch.device("cpu"), True),
        ("cpu", "mps", False),
        ("cpu", "cuda", False),
        ("meta", "cpu", False),
        ("meta", "meta", True),
        ("meta", "mps", False),
        ("meta", "cuda:1", False),
    ],
)
def test_is_on_target_device(
    handler: AceStepHandler, tensor_device: str, target: Any, expected: bool
) -> None:
    tensor = torch.empty(1, device=tensor_device)
    assert handler._is_on_target_device(tensor, target) is expected


def test_is_on_target_device_without_a_tensor_or_a_device(handler: AceStepHandler) -> None:
    assert not handler._is_on_target_device(None, "cpu")
    with pytest.raises(DeviceError):
        handler._is_on_target_device(torch.empty(1), "banana")


def test_latents_that_cannot_be_used_are_errors() -> None:
    policy = resolve("cpu")
    good = torch.randn(2, 5, 4)
    check_latents(good, policy)
    for value in (float("nan"), float("inf")):
        bad = good.clone()
        bad[1, 2, 3] = value
        with pytest.raises(GenerationError, match="NaN or infinite latents on cpu: the checkpoint"):
            check_latents(bad, policy)
    with pytest.raises(GenerationError, match="float16 overflows"):
        check_latents(bad, resolve("cpu", dtype="float16"))
    good[0] = 0
    with pytest.raises(GenerationError, match="all-zero latents"):
        check_latents(good, policy)


def test_a_model_that_overflows_gives_an_error_and_no_song(base_folder: Any) -> None:
    handler = AceStepHandler()
    handler.load(str(base_folder), resolve("cpu"))
    assert handler.pipeline is not None
    handler.pipeline.transformer.proj_out_conv.bias.fill_(float("inf"))
    result = handler.generate_music("x", audio_duration=0.6, inference_steps=1)
    assert not result["success"]
    assert "NaN or infinite latents" in result["error"]
    assert result["audios"] == []


@pytest.mark.parametrize(("value", "expected"), [(0.0, "silence"), (float("nan"), "not finite")])
def test_audio_that_cannot_be_used_is_an_error(value: float, expected: str) -> None:
    with pytest.raises(GenerationError, match=expected):
        level.normalized(torch.full((1, 2, 10), value))


def test_loudness_is_minus_one_db_for_loud_and_quiet() -> None:
    audio = torch.stack([torch.ones(2, 8) * 3, torch.ones(2, 8) * 0.01])
    assert level.normalized(audio).abs().amax(dim=(1, 2)).tolist() == pytest.approx(
        [level.PEAK] * 2
    )


def test_out_of_memory_is_a_line_with_advice(
    handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("MPS backend out of memory\n(details)")

    monkeypatch.setattr("acestep.engines.torch.codec.decode", exhausted)
    result = handler.generate_music("x", audio_duration=0.6, inference_steps=1)
    assert result["error"].startswith("cpu ran out of memory (MPS backend out of memory); make")


def test_compile_model_compiles_layers_and_decoder_only_when_asked(
    base_folder: Any, base_handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled runs here as it is: the compiler itself would take a minute."""
    compiled: list[str] = []

    def record(function: Any, dynamic: bool) -> Any:
        assert dynamic
        compiled.append(getattr(function, "__name__", type(function).__name__))
        return function

    monkeypatch.setattr(torch, "compile", record)
    wave_decoder._compiled.cache_clear()
    request = Request("harp", (1,), duration=0.6, steps=1)
    plain = base_handler.generate(request).songs[0].audio
    assert not compiled
    handler = AceStepHandler()
    handler.load(str(base_folder), resolve("cpu"), compile_model=True)
    for _ in range(2):
        made = handler.generate(request).songs[0].audio
        torch.testing.assert_close(made, plain, atol=1e-5, rtol=0)
    wave_decoder._compiled.cache_clear()
    assert compiled == ["_run_layer", "_activated", "_joined"]


def test_bring_without_a_hook_does_nothing() -> None:
    module = torch.nn.Linear(1, 1)
    bring(module)
    assert module.weight.device == torch.device("cpu")


def test_refused_requests_name_the_field(handler: AceStepHandler) -> None:
    with pytest.raises(RequestError, match="bpm 20 is out of range"):
        handler.generate(Request("x", (1,), bpm=20))
