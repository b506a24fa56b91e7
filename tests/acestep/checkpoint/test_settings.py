"""Tests of configs as they exist: loaded right, or refused by the name of what is in the way."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.checkpoint.distilled import is_distilled
from acestep.checkpoint.finding import find
from acestep.checkpoint.settings import FULL, SLIDING, is_turbo, layer_types, understood
from acestep.device import resolve
from acestep.engines.torch.loading import load_pipeline
from acestep.errors import CheckpointError
from acestep.handler import AceStepHandler
from acestep.song.request import Request

WriteOriginal = Callable[..., Path]
FILE = Path("config.json")
# Some 25 tokens, three windows.
SECONDS = 2.0


@pytest.fixture
def dit(base_folder: Path, tmp_path: Path, write_original: WriteOriginal) -> Path:
    """A checkpoint in the original layout whose windows are shorter than its songs."""
    folder = write_original(base_folder, tmp_path / "checkpoints")
    change(folder, sliding_window=8)
    return folder


def change(folder: Path, **fields: Any) -> None:
    """Set fields of a config; `...` removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def one_step(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents after one step, by the handler and by diffusers' own modules."""
    handler = AceStepHandler()
    handler.load(str(folder), resolve("cpu"))
    request = Request("a song", (4,), duration=SECONDS, steps=1, guidance_scale=1.0)
    made = handler.generate(request).tensors
    assert handler.pipeline is not None
    noise = torch.randn(made["pred_latents"].shape[1:], generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        velocity = handler.pipeline.transformer(
            hidden_states=noise[None],
            timestep=torch.ones(1),
            timestep_r=torch.ones(1),
            encoder_hidden_states=made["encoder_hidden_states"],
            context_latents=made["context_latents"],
        ).sample
    return made["pred_latents"], noise[None] - velocity


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        ({"is_turbo": True, "model_version": "base"}, "acestep-v15-base", True),
        ({"is_turbo": False, "model_version": "turbo"}, "acestep-v15-turbo", False),
        ({"is_turbo": True}, "mine", True),
        ({"model_version": "turbo"}, "mine", True),
        ({"is_turbo": None, "model_version": "sft"}, "acestep-v15-turbo", False),
    ],
)
def test_is_turbo_decides(
    config: dict[str, Any], name: str, expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_turbo(config, name, FILE) is expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("config", "name", "expected", "said"),
    [
        ({"auto_map": {"AutoModel": "modeling_x_turbo.Model"}}, "mine", True, "from auto_map"),
        ({}, "acestep-v15-turbo-shift3", True, "from the checkpoint's name"),
        ({"model_version": None}, "acestep-v15-base", False, "from the checkpoint's name"),
        ({}, "mine", False, "taken as not distilled"),
    ],
)
def test_a_guess_is_said(
    config: dict[str, Any],
    name: str,
    expected: bool,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "acestep.checkpoint"):
        assert is_turbo(config, name, FILE) is expected
    assert said in caplog.text


@pytest.mark.parametrize(
    "fields", [{"is_turbo": False, "model_version": "turbo"}, {"is_turbo": ...}]
)
def test_the_pipeline_is_of_that_kind(dit: Path, fields: dict[str, Any]) -> None:
    """The folder is named turbo; what the config says comes first."""
    change(dit, **({"model_version": ...} | fields))
    pipeline = load_pipeline(find(str(dit)), resolve("cpu"))
    assert pipeline.is_turbo is (fields["is_turbo"] is ...)
    assert is_distilled(find(str(dit))) is pipeline.is_turbo


def test_the_kind_is_known_before_loading(demo_folder: Path, base_folder: Path) -> None:
    assert is_distilled(find(str(demo_folder)))
    assert not is_distilled(find(str(base_folder)))


@pytest.mark.parametrize(
    "off",
    [
        {"use_sliding_window": False},
        {"use_sliding_window": False, "sliding_window": None},
        {"sliding_window": None},
    ],
)
def test_without_windows(dit: Path, off: dict[str, Any]) -> None:
    windowed, _ = one_step(dit)
    change(dit, **off)
    ours, theirs = one_step(dit)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert (ours - windowed).abs().max() > 1e-3
    change(dit, sliding_window=8, use_sliding_window=True, layer_types=[FULL, FULL])
    named, _ = one_step(dit)
    assert torch.equal(named, ours)


def test_layers_that_do_not_alternate(dit: Path) -> None:
    made = []
    for kinds in ([SLIDING, FULL], [FULL, SLIDING], [SLIDING, SLIDING]):
        change(dit, layer_types=kinds)
        ours, theirs = one_step(dit)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
        pipeline = load_pipeline(find(str(dit)), resolve("cpu"))
        for stack in (
            pipeline.transformer,
            pipeline.condition_encoder.lyric_encoder,
            pipeline.condition_encoder.timbre_encoder,
        ):
            windows = [layer.self_attn.sliding_window for layer in stack.layers]
            assert windows == [8 if kind == SLIDING else None for kind in kinds]
        made.append(ours)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(made))


def test_layer_kinds_survive_the_diffusers_layout(dit: Path, tmp_path: Path) -> None:
    change(dit, layer_types=[FULL, SLIDING])
    before = load_pipeline(find(str(dit)), resolve("cpu"))
    from diffusers import AceStepPipeline

    AceStepPipeline(**before.components).save_pretrained(tmp_path / "stored")
    after = load_pipeline(find(str(tmp_path / "stored")), resolve("cpu"))
    for name in ("transformer", "condition_encoder"):
        windows = [
            [part.sliding_window for part in getattr(p, name).modules() if hasattr(part, "heads")]
            for p in (before, after)
        ]
        assert windows[0] == windows[1], name


def test_biases_of_attention(dit: Path) -> None:
    """diffusers knows them, and the transformer's own steps use them."""
    plain, _ = one_step(dit)
    tensors = load_file(dit / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    biases = {
        name.replace(".weight", ".bias"): torch.randn(value.shape[0], generator=generator)
        for name, value in tensors.items()
        if re.search(r"attn\.[qkvo]_proj\.weight$", name)
    }
    save_file(tensors | biases, dit / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected tensor '.*_proj\.bias'"):
        load_pipeline(find(str(dit)), resolve("cpu"))
    change(dit, attention_bias=True)
    ours, theirs = one_step(dit)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
    assert (ours - plain).abs().max() > 1e-3


def test_unknown_fields_are_left_out(dit: Path) -> None:
    plain, _ = one_step(dit)
    change(dit, made_by="someone", timestep_mu=-0.4, rope_scaling={"rope_type": "default"})
    change(dit, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert torch.equal(one_step(dit)[0], plain)


def test_rotary_base_from_the_newer_place(dit: Path) -> None:
    change(dit, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert load_pipeline(find(str(dit)), resolve("cpu")).transformer.rope_theta == 500.0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"fsq_input_num_quantizers": 2}, "fsq_input_num_quantizers is 2, and only 1"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'silu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters is"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 2"),
        ({"layer_types": ["full_attention", "chunked"]}, "layer_types is"),
        ({"layer_types": "full_attention"}, "layer_types is"),
        ({"is_turbo": "yes"}, "is_turbo is 'yes', expected true or false"),
        ({"use_sliding_window": "no"}, "use_sliding_window is 'no'"),
        ({"attention_bias": 1}, "attention_bias is 1, expected true or false"),
        ({"sliding_window": "8"}, "sliding_window is '8'"),
        ({"hidden_size": "64"}, "hidden_size is '64', expected a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', expected a number"),
        ({"rope_theta": True}, "rope_theta is True"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
    ],
)
def test_refused_by_name(dit: Path, fields: dict[str, Any], named: str) -> None:
    change(dit, **fields)
    handler = AceStepHandler()
    message, ok = handler.initialize_service(None, str(dit), "cpu")
    assert not ok
    assert named in message
    assert str(dit / "config.json") in message
    assert "\n" not in message
    assert handler.pipeline is None


def test_two_quantizers_are_refused_in_the_diffusers_layout(
    base_folder: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(base_folder, tmp_path / "two")
    change(tmp_path / "two" / "audio_tokenizer", fsq_input_num_quantizers=2)
    with pytest.raises(CheckpointError, match="fsq_input_num_quantizers is 2"):
        load_pipeline(find(str(tmp_path / "two")), resolve("cpu"))


def test_stacks_read_one_list_from_its_start() -> None:
    mixed = {"layer_types": [FULL, SLIDING, FULL]}
    assert layer_types(mixed, 2, FILE) == [FULL, SLIDING]
    assert layer_types({}, 3, FILE) == [SLIDING, FULL, SLIDING]
    # A list that alternates goes on where it ends.
    assert layer_types({"layer_types": [SLIDING, FULL]}, 4, FILE) == [SLIDING, FULL] * 2
    assert layer_types({"layer_types": [FULL]}, 4, FILE) == [FULL] * 4
    with pytest.raises(CheckpointError, match="names 3 layers, and a part of the model has 4"):
        layer_types(mixed, 4, FILE)


def test_null_is_not_given() -> None:
    made = understood({"rms_norm_eps": None, "layer_types": None, "hidden_size": 4}, FILE)
    assert made == {"hidden_size": 4}
