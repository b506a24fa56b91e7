"""XL checkpoints: conditions of a width of their own, guidance, and the lyrics' score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.entrypoints import covers
from conformance.suite.support import Api, generate, new_handler, placed, song, tone
from conformance.targets import Target


@covers(
    "A1",
    "A3",
    "checkpoint.kinds:is_xl",
    "corrections.timbre:hear_special_token",
    "diffusion.conditions:Conditioner",
    "diffusion.making:Maker",
    "engines.torch.engine:TorchEngine",
    "engines.torch.pipeline:Pipeline.wait_on_host",
    "handler:AceStepHandler.adopt",
    "engines.torch.engine:TorchEngine.close",
)
def test_xl_is_loaded_where_it_is_asked_for(api: Api, target: Target, xl_folder: Path) -> None:
    handler = new_handler(api)
    message, ok = handler.initialize_service(None, str(xl_folder), target.device)
    assert ok, message
    assert (handler.pipeline is None) is (target.engine == "mlx")
    if handler.pipeline is not None:
        for _, tensor in placed(handler.pipeline.condition_encoder):
            assert tensor.device.type == target.device
    song(generate(api, handler, audio_cover_strength=1.0))
    handler.unload()


@covers(
    "A1",
    "A3",
    "diffusion.guidance:*",
    "engines.torch.engine:TorchEngine.precise",
    "engines.torch.engine:TorchEngine.unconditional",
)
def test_xl_is_guided(api: Api, target: Target, xl: Any) -> None:
    """By differences, by angles, and in an interval; each another song."""
    songs = [
        song(generate(api, xl, guidance_scale=5.0, **how))
        for how in ({}, {"use_adg": True}, {"cfg_interval_start": 0.8})
    ]
    assert not torch.allclose(songs[0], songs[1], atol=1e-4)
    assert not torch.allclose(songs[0], songs[2], atol=1e-4)


@covers("A1", "A3")
@pytest.mark.parametrize("task", ["cover", "repaint", "lego", "extract", "complete"])
def test_xl_does_every_task(api: Api, target: Target, xl: Any, task: str) -> None:
    made = generate(
        api, xl, task_type=task, src_audio=tone(0.6), repainting_start=0.2, repainting_end=0.4
    )
    song(made)


@covers("S1", "S2", "A1")
def test_xl_lyrics_are_judged(api: Api, target: Target, xl: Any) -> None:
    made = generate(api, xl, lyrics="[verse]\nhello world")
    assert made.success, made.error
    inputs = api.get("alignment.service:song_inputs")(made.extra_outputs)
    judged = xl.get_lyric_score(**inputs, custom_layers_config={0: [0, 1]})
    assert judged["success"], judged["error"]
    weight = torch.zeros(1, device=target.device)
    if xl.pipeline is not None:
        weight = xl.pipeline.transformer.proj_out_conv.weight
    assert xl._is_on_target_device(weight, target.device) is True


def changed_by_one(token: Any) -> Any:
    """A parameter or array, each number greater by one."""
    more = token + 1.0
    return torch.nn.Parameter(more) if isinstance(token, torch.nn.Parameter) else more


def test_the_token_is_heard(api: Api, target: Target, xl: Any) -> None:
    """Without it every song of an XL checkpoint is another."""
    held = xl.pipeline if xl.pipeline is not None else xl.engine.parts
    encoder = held.condition_encoder.timbre_encoder
    before = generate(api, xl, caption="before").extra_outputs["encoder_hidden_states"]
    with torch.no_grad():
        plain = encoder.special_token
        encoder.special_token = changed_by_one(plain)
        xl.engine._silent_timbre = None
        after = generate(api, xl, caption="before ").extra_outputs["encoder_hidden_states"]
        encoder.special_token = plain
        xl.engine._silent_timbre = None
    assert before.shape[1] <= after.shape[1]
    changed = (before[:, : before.shape[1]] - after[:, : before.shape[1]]).abs().amax(dim=(0, 2))
    assert changed.max() > 1e-3
