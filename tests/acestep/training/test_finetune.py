"""Tests of whole fine-tuning runs, of adapters on a handler, and of `acestep train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.acestep_v15_pipeline import main
from acestep.checkpoint.adapters import making
from acestep.device import resolve
from acestep.errors import AceStepError, CheckpointError, RequestError, TrainingError
from acestep.handler import AceStepHandler
from acestep.training import finetune
from acestep.training.configs import LORA_TARGETS, TrainingConfig
from acestep.training.log import read_log


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "SAMPLE_SECONDS", 1.0)


@pytest.fixture(scope="module")
def adapter(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the small checkpoint whose update is large enough to hear."""
    handler = loaded(base_folder)
    assert handler.pipeline is not None
    transformer = handler.pipeline.transformer
    making.add_adapter(transformer, 4, 8.0, LORA_TARGETS, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, value in transformer.named_parameters():
        if "lora_B" in name:
            value.data = 0.2 * torch.randn(value.shape, generator=generator)
    path = tmp_path_factory.mktemp("adapter") / "loud.lora"
    making.save_adapter(transformer, path)
    return path


def loaded(folder: Path) -> AceStepHandler:
    handler = AceStepHandler()
    handler.load(str(folder), resolve("cpu"))
    return handler


def latents(handler: AceStepHandler) -> torch.Tensor:
    made = handler.generate_music(
        "a hum", audio_duration=1.0, inference_steps=2, guidance_scale=1.0, seed=3,
        use_random_seed=False,
    )  # fmt: skip
    assert made["success"], made["error"]
    tensor: torch.Tensor = made["extra_outputs"]["latents"]
    return tensor


def weights(handler: AceStepHandler) -> dict[str, torch.Tensor]:
    assert handler.pipeline is not None
    return {name: v.clone() for name, v in handler.pipeline.transformer.state_dict().items()}


def test_an_adapter_comes_and_goes(base_folder: Path, adapter: Path) -> None:
    handler = loaded(base_folder)
    before, plain = weights(handler), latents(handler)
    handler.load_lora(adapter)
    full = latents(handler)
    assert not torch.allclose(full, plain, atol=1e-2)
    handler.set_lora_scale(0.5)
    half = latents(handler)
    assert not torch.allclose(half, plain, atol=1e-3)
    assert not torch.allclose(half, full, atol=1e-3)
    handler.set_lora_scale(0.0)
    assert torch.allclose(latents(handler), plain, atol=1e-5)
    handler.set_lora_scale(1.0)
    assert torch.equal(latents(handler), full)
    handler.disable_lora()
    assert torch.allclose(latents(handler), plain, atol=1e-5)
    handler.load_lora(adapter, 0.5)
    assert torch.equal(latents(handler), half)
    handler.unload_lora()
    handler.unload_lora()
    after = weights(handler)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(latents(handler), plain)


def test_the_file_is_in_diffusers_format(base_folder: Path, adapter: Path, tmp_path: Path) -> None:
    """diffusers' own loader takes it from a folder, and so does the handler."""
    from diffusers import AceStepTransformer1DModel

    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(adapter.read_bytes())
    model = AceStepTransformer1DModel.from_pretrained(base_folder / "transformer")
    model.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    config = next(iter(model.peft_config.values()))
    assert (config.r, config.lora_alpha) == (4, 8.0)
    handler = loaded(base_folder)
    handler.load_lora(adapter)
    assert handler.pipeline is not None
    mine = making.peft_package().get_peft_model_state_dict(
        handler.pipeline.transformer, adapter_name="acestep"
    )
    theirs = making.peft_package().get_peft_model_state_dict(model, adapter_name="default_0")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    one = latents(handler)
    handler.load_lora(tmp_path)
    assert torch.equal(latents(handler), one)


def test_adapters_that_do_not_fit(base_folder: Path, adapter: Path, tmp_path: Path) -> None:
    handler = loaded(base_folder)
    before = weights(handler)
    with pytest.raises(RequestError, match="no such adapter file"):
        handler.load_lora(tmp_path / "none.lora")
    broken = tmp_path / "broken.lora"
    broken.write_bytes(adapter.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="not readable as an adapter"):
        handler.load_lora(broken)
    other = tmp_path / "other.lora"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match="holds no LoRA weights"):
        handler.load_lora(other)
    state = load_file(adapter)
    save_file({k.replace("layers.0", "layers.9"): v for k, v in state.items()}, other)
    with pytest.raises(CheckpointError, match=r"has no layer 'layers\.9"):
        handler.load_lora(other)
    save_file({k: torch.zeros(4, 9) if "lora_A" in k else v for k, v in state.items()}, other)
    with pytest.raises(CheckpointError, match="of another width"):
        handler.load_lora(other)
    assert weights(handler).keys() == before.keys()


def test_what_needs_an_adapter_or_a_checkpoint(base_folder: Path, adapter: Path) -> None:
    with pytest.raises(RequestError, match="no checkpoint is loaded"):
        AceStepHandler().load_lora(adapter)
    handler = loaded(base_folder)
    for call in (handler.disable_lora, lambda: handler.set_lora_scale(1.0)):
        with pytest.raises(RequestError, match="no adapter is loaded"):
            call()
    for scale in (-0.1, float("nan"), 5.0):
        with pytest.raises(RequestError, match=r"LoRA scale .* is out of range"):
            handler.load_lora(adapter, scale)


def test_a_run_stores_an_adapter_that_lowers_the_loss(
    base_folder: Path, songs: Path, tmp_path: Path
) -> None:
    config = TrainingConfig(
        steps=12, batch_size=3, learning_rate=2e-2, lora_rank=4, sample_every=10, save_every=10
    )
    output = tmp_path / "hum.lora"
    seen: list[Any] = []
    policy = resolve("cpu").for_training()
    folder = finetune.run(
        songs, str(base_folder), output, policy, config, lambda *a: seen.append(a)
    )
    assert seen[-1] == (3, 3)
    losses = [row["loss"] for row in read_log(folder / "loss.csv")]
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    assert [p.name for p in (folder / "samples").iterdir()] == ["step-000010.flac"]
    handler = loaded(base_folder)
    plain = latents(handler)
    handler.load_lora(output)
    assert not torch.allclose(latents(handler), plain, atol=1e-3)


def test_a_whole_transformer_is_stored_as_a_checkpoint(
    base_folder: Path, songs: Path, tmp_path: Path
) -> None:
    config = TrainingConfig(steps=3, batch_size=1, lora_rank=0, sample_every=1, save_every=1)
    output = tmp_path / "tuned"
    finetune.run(songs, str(base_folder), output, resolve("cpu").for_training(), config)
    tuned, base = weights(loaded(output)), weights(loaded(base_folder))
    assert tuned.keys() == base.keys()
    assert not torch.equal(
        tuned["layers.0.self_attn.to_q.weight"], base["layers.0.self_attn.to_q.weight"]
    )


def test_too_little_memory_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = resolve("cpu")
    monkeypatch.setattr(type(policy), "free_memory", property(lambda _: 1e-6))
    with pytest.raises(TrainingError, match=r"needs 0\.0 GiB .* cpu has 0\.0 GiB free"):
        finetune.check_memory(torch.nn.Linear(100, 100), policy)


def test_the_command_line(
    base_folder: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "hum.lora"
    options = ["--model", str(base_folder), "--device", "cpu"]
    train = ["train", "--data", str(songs), "--lora", "2", "--steps", "2", "-o", str(output)]
    assert main([*train, *options]) == 0
    assert f"{output}: 2 steps on cpu, loss " in capsys.readouterr().out
    first = output.read_bytes()
    longer = [*train, *options, "--steps", "3", "-q"]
    assert main(longer) == 0
    assert output.read_bytes() != first
    assert len(read_log(output.with_name("hum.lora.run") / "loss.csv")) == 3
    assert main([*train, *options]) == 2
    assert "has 3 steps already; ask for more" in capsys.readouterr().err
    song = tmp_path / "song.wav"
    make = ["generate", "a hum", "--duration", "1", "--steps", "2", "--seed", "1", "-o", str(song)]
    assert main([*make, *options, "--lora", str(output), "--lora-scale", "0.8"]) == 0
    record = json.loads(song.with_suffix(".json").read_text())
    assert record["lora"] == {"file": str(output), "scale": 0.8}


@pytest.mark.parametrize(
    ("changed", "taken", "message"),
    [
        (["-o", "mine.lora"], "mine.lora", "exists, and no run of its own lies beside it"),
        (["-o", "folder"], "folder/x", "is a folder, and an adapter is a file"),
        (["-o", "mine", "--full"], "mine", "is a file, and a checkpoint is a folder"),
        (["-o", "mine.lora/x"], "mine.lora", "cannot write to"),
    ],
)
def test_what_exists_is_kept_and_that_is_said_before_the_work(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str],
    taken: str, message: str,
) -> None:  # fmt: skip
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("mine")
    assert main(["train", "--data", str(songs), "--model", "nothing", *changed]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / taken).read_text() == "mine"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--lora", "0"], "LoRA rank 0 is out of range"),
        (["--steps", "0"], "steps 0 is out of range"),
        (["--data", "nowhere"], "no such folder"),
        (["--dtype", "float16"], "float16 overflows"),
        (["--model", "nothing"], "no checkpoint folder 'nothing'"),
    ],
)
def test_wrong_requests_are_one_line(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str],
    message: str,
) -> None:  # fmt: skip
    output = str(tmp_path / "x.lora")
    assert main(["train", "--data", str(songs), "-o", output, *changed]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["songs"]


def test_peft_missing_is_said(
    base_folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    handler = loaded(base_folder)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AceStepError, match=r"pip install 'acestep\[train\]'"):
        handler.load_lora(adapter)
