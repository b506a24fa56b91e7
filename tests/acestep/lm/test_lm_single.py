"""Tests of language models in single files: unpacked once, and the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.checkpoint.files import weight_files
from acestep.errors import CheckpointError
from acestep.lm import models


@pytest.fixture
def single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The built-in language model in one file, with a head of its own and its tokenizer."""
    demo = models.find("demo")
    monkeypatch.setenv("ACESTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tensors = {k: v for file in weight_files(demo) for k, v in load_file(file).items()}
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].clone())
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "qwen_ace15.safetensors"
    save_file(tensors, file)
    config = json.loads((demo / "config.json").read_text())
    told = {key: config[key] for key in ("rope_parameters", "max_position_embeddings")}
    file.with_suffix(".json").write_text(json.dumps({"text_config": told}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, file.parent)
    return file


def test_a_single_file_becomes_a_folder(single: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = models.find(str(single))
    assert folder.parent == Path("cache/language-models").absolute()
    assert (folder / "tokenizer.json").is_file()
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.find(str(single)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    given = load_file(single)
    for name, value in model.state_dict().items():
        assert torch.equal(value, given[name].bfloat16()), name


def test_float8_with_scales(single: Path) -> None:
    tensors = load_file(single)
    name = "model.layers.0.mlp.down_proj.weight"
    scale = tensors[name].abs().max() / 448
    tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
    tensors[name + "_scale"] = scale
    save_file(tensors, single)
    made = load_file(models.find(str(single)) / "model.safetensors")
    assert set(made) == set(tensors) - {name + "_scale"}
    assert torch.equal(made[name], (tensors[name].float() * scale).bfloat16())


def test_refusals_are_one_line(single: Path) -> None:
    (single.parent / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="single files hold no tokenizer") as caught:
        models.find(str(single))
    assert "\n" not in str(caught.value)
    assert not list(Path("cache").glob("*/*"))
    save_file({"x": torch.zeros(1)}, single)
    with pytest.raises(CheckpointError, match="holds no 5 Hz language model"):
        models.find(str(single))
    single.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="not a safetensors file, or truncated"):
        models.find(str(single))
