"""The engine `pt`: what it refuses, where it puts the model, and running out of memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from acestep.device import resolve
from acestep.errors import CheckpointError
from acestep.lm import loading, models
from acestep.lm.pt import PtBackend


@pytest.fixture(scope="module")
def demo() -> Path:
    return models.find("demo")


@pytest.mark.parametrize("damage", ["tokenizer", "weights", "codes", "shape"])
def test_damaged_models_are_refused(demo: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "lm"
    shutil.copytree(demo, folder)
    if damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif damage == "weights":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif damage == "codes":
        from acestep.demo.recipe import make_tokenizer

        make_tokenizer(600).save_pretrained(folder)
    else:
        text = (folder / "config.json").read_text()
        assert '"hidden_size": 192' in text
        (folder / "config.json").write_text(text.replace('"hidden_size": 192', '"hidden_size": 64'))
    with pytest.raises(CheckpointError, match=str(folder)):
        PtBackend(folder, resolve("cpu"))


def test_offloading_and_compiling_are_options(demo: Path) -> None:
    """On the host offloading moves nothing, but its path is the same."""
    from acestep.lm.backend import CodeJob
    from acestep.lm.prompts import Prompt
    from acestep.lm.sampling import Sampling

    made: Any = loading.load("pt", demo, resolve("cpu"), offload=True)
    job = CodeJob([Prompt([5, 6])], [1], Sampling(), [3])
    first = made.codes(job, lambda done, most: None)
    assert first == made.codes(job, lambda done, most: None)
    assert len(first[0]) == 3
    made.close()


def test_running_out_of_memory_is_one_line(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from acestep.errors import GenerationError
    from acestep.lm.backend import CodeJob
    from acestep.lm.decoding import Decoding
    from acestep.lm.prompts import Prompt
    from acestep.lm.sampling import Sampling

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    made: Any = loading.load("pt", demo, resolve("cpu"))
    monkeypatch.setattr(Decoding, "start", full)
    with pytest.raises(GenerationError, match=r"cpu ran out of memory in the language model \(t"):
        made.codes(CodeJob([Prompt([5])], [1], Sampling(), [3]), lambda done, most: None)
