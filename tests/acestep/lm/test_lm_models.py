"""Language models on disk: found, refused, and measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from acestep.bench import lm_benchmark as benchmark
from acestep.device import resolve
from acestep.errors import CheckpointError, RequestError
from acestep.gpu_config import get_gpu_config
from acestep.lm import backend, models
from acestep.lm.pt import PtBackend


@pytest.fixture(scope="module")
def demo() -> Path:
    return models.find("demo")


def test_the_largest_that_the_tier_allows(demo: Path, tmp_path: Path) -> None:
    for name in ("acestep-5Hz-lm-0.6B", "acestep-5Hz-lm-1.7B", "acestep-5Hz-lm-4B"):
        (tmp_path / name).mkdir()
        shutil.copy(demo / "config.json", tmp_path / name)
    for gigabytes, name in ((80, "acestep-5Hz-lm-4B"), (16, "acestep-5Hz-lm-1.7B")):
        assert models.find("auto", tmp_path, get_gpu_config(gigabytes)).name == name
    assert models.find(None, tmp_path, get_gpu_config(4)) == demo
    assert models.find("acestep-5Hz-lm-0.6B", tmp_path).resolve().parent == tmp_path
    assert models.available(tmp_path)[:1] == ["acestep-5Hz-lm-0.6B"]
    assert models.available(tmp_path)[-1] == "demo"


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
        assert '"hidden_size": 32' in text
        (folder / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": 64'))
    with pytest.raises(CheckpointError, match=str(folder)):
        PtBackend(folder, resolve("cpu"))


def test_offloading_and_compiling_are_options(demo: Path) -> None:
    """On the host offloading moves nothing, but its path is the same."""
    from acestep.lm.backend import CodeJob
    from acestep.lm.prompts import Prompt
    from acestep.lm.sampling import Sampling

    made: Any = backend.load("pt", demo, resolve("cpu"), offload=True)
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

    made: Any = backend.load("pt", demo, resolve("cpu"))
    monkeypatch.setattr(Decoding, "start", full)
    with pytest.raises(GenerationError, match=r"cpu ran out of memory in the language model \(t"):
        made.codes(CodeJob([Prompt([5])], [1], Sampling(), [3]), lambda done, most: None)


class _CudaPolicy:
    name = "cuda:0"
    prefers_vllm = True
    lm_backend = "pt"
    lm_backend_reason = "vLLM is not installed"


def test_the_engine_is_chosen_by_the_device() -> None:
    policy: Any = _CudaPolicy()
    assert backend.choose(None, resolve("cpu")) == ("pt", None)
    assert backend.choose("pt", policy) == ("pt", None)
    assert backend.choose("auto", policy) == (
        "pt",
        "vLLM is not installed: the language model uses pt",
    )
    with pytest.raises(RequestError, match="vLLM is not installed; use pt"):
        backend.choose("vllm", policy)
    policy.lm_backend = "vllm"
    assert backend.choose("", policy) == ("vllm", None)


def test_the_benchmark_prints_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from acestep.lm.demo import LmShape

    monkeypatch.setitem(benchmark.SHAPES, "small", (LmShape(tied=True), 65000))
    monkeypatch.setattr(benchmark, "_MASK_STEPS", 3)
    options = ["--device", "cpu", "--codes", "3", "--repeats", "1", "--bandwidth", "0.05"]
    assert benchmark.main(options) == 0
    printed = capsys.readouterr().out
    for name in ("transformers generate()", "pt", "limit at 0.05 TB/s", "mask of a text token"):
        assert name in printed
