"""A transformers model loads without drawing anything, and leaves the library's bars as they were."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Qwen3Config, Qwen3Model
from transformers.utils import logging

from acestep.checkpoint.pretrained import load_pretrained
from acestep.errors import CheckpointError

CONFIG = Qwen3Config(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Qwen3Model(CONFIG).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("shown", [True, False])
def test_no_bar_is_drawn_and_the_setting_is_kept(
    folder: Path, shown: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever the environment says of them.
    hub = importlib.import_module("huggingface_hub.utils.tqdm")
    monkeypatch.setattr(hub, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        model = load_pretrained(AutoModel, folder, "the model", torch.float32, "cpu")
        assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    assert not any(p.requires_grad for p in model.parameters())
    assert "Loading" not in capfd.readouterr().err


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"weights of the model .*missing keys: layers\.1"):
        load_pretrained(AutoModel, folder, "the model", torch.float32, "cpu")


def test_damaged_weights_are_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="the model cannot be loaded") as caught:
        load_pretrained(AutoModelForCausalLM, folder, "the model", torch.float32, "cpu")
    assert "\n" not in str(caught.value)
