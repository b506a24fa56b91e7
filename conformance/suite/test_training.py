"""Training: a step in the device's own autocast, its gradients, and a run from end to end."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.entrypoints import covers
from conformance.suite.support import (
    SAMPLE_RATE,
    Api,
    generate,
    initialised,
    song,
    tone,
    transformer_weights,
)
from conformance.targets import Target
from conformance.tree import PACKAGE, Absent, load


def trainer_class(api: Api) -> Any:
    """The public class of `training.trainer` that takes training steps."""
    module = load(api.tree, "training.trainer", optional="peft")
    for name, value in vars(module).items():
        own = inspect.isclass(value) and value.__module__.startswith(PACKAGE)
        if own and not name.startswith("_") and hasattr(value, "training_step"):
            return value
    raise Absent("acestep.training.trainer has no class with a training_step")


class Velocity(torch.nn.Module):
    """A model small enough to train in a test; records the autocast it ran under."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.cast: dict[str, bool] = {}

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """A velocity of the shape of the state `[batch, frames, 8]`."""
        self.cast = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps")}
        velocity: torch.Tensor = self.layer(hidden_states)
        return velocity


@covers("S7", "training.trainer:Trainer", "training.trainer:Trainer.training_step")
@torch.enable_grad()
def test_a_step_on_the_device(api: Api, target: Target) -> None:
    model = Velocity()
    trainer = trainer_class(api)(model, device=target.device)
    batch = {"latents": torch.ones(2, 5, 8)}
    loss = trainer.training_step(batch)
    assert torch.isfinite(loss.detach().float().cpu())
    loss.backward()
    gradient = model.layer.weight.grad
    assert gradient is not None
    assert gradient.device.type == target.device
    assert not [k for k, on in model.cast.items() if on and k != target.device]


@covers("S7", "training.configs:TrainingConfig", "training.flow:*")
@torch.enable_grad()
def test_gradients_are_those_of_the_host(api: Api, target: Target) -> None:
    config = api.get("training.configs:TrainingConfig")(dtype="float32", seed=3)
    batch = {"latents": torch.linspace(-1, 1, 80).reshape(2, 5, 8)}
    gradients = []
    here = Velocity()
    for model, device in ((copy.deepcopy(here), "cpu"), (here, target.device)):
        trainer = api.get("training.trainer:Trainer")(model, device=device, config=config)
        trainer.training_step(batch).backward()
        gradients.append([p.grad.detach().cpu() for p in model.parameters() if p.grad is not None])
    for host, device_own in zip(*gradients, strict=True):
        torch.testing.assert_close(device_own, host, rtol=1e-4, atol=1e-4)


@covers(
    "S7",
    "acestep_v15_pipeline:main",
    "checkpoint.adapters.applying:*",
    "checkpoint.adapters.making:*",
    "checkpoint.adapters.naming:*",
    "checkpoint.adapters.reading:*",
    "checkpoint.adapters.updates:LowRank.rank",
    "cli.train:*",
    "device.policy:DevicePolicy.for_training",
    "corrections.masks:*",
    "training.configs:TrainingConfig.*",
    "training.data:*",
    "training.finetune:*",
    "training.log:*",
    "training.state:*",
    "training.trainer:Trainer.fit",
    "training.trainer:Trainer.trained",
)
@torch.enable_grad()
def test_an_adapter_from_songs_to_song(
    api: Api, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command trains; the handler loads, scales, switches off and unloads the result."""
    import soundfile

    pytest.importorskip("peft", reason="an extra: acestep[train]")
    monkeypatch.setattr(api.get("training.finetune:run").__module__ + ".SAMPLE_SECONDS", 0.5)
    songs, output = tmp_path / "songs", tmp_path / "tone.lora"
    songs.mkdir()
    # Of different lengths, so that what the transformer attends to needs a mask.
    for name, caption in (("tone", "a steady tone"), ("hum", "a hum, calm and low, for a while")):
        soundfile.write(songs / f"{name}.wav", tone(1.0).T.numpy(), SAMPLE_RATE)
        (songs / f"{name}.txt").write_text(caption, encoding="utf-8")
    train = ["train", "--data", str(songs), "--model", "demo", "--device", target.device]
    sizes = ["--lora", "2", "--steps", "2", "--batch", "2", "--sample-every", "2"]
    assert api.get("acestep_v15_pipeline:main")([*train, *sizes, "-o", str(output)]) == 0

    handler = initialised(api, target.device)
    before = transformer_weights(handler)
    handler.load_lora(output, 0.5)
    handler.set_lora_scale(1.0)
    song(generate(api, handler))
    handler.disable_lora()
    handler.unload_lora()
    after = transformer_weights(handler)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@covers(
    "A1",
    "engines.torch.engine:TorchEngine.adapters",
    "checkpoint.adapters.layers:*",
    "checkpoint.adapters.updates:Hadamard.*",
    "checkpoint.adapters.updates:Kronecker.*",
    *(f"checkpoint.adapters.updates:LowRank.{name}" for name in ("apply", "dense", "factors")),
    "checkpoint.adapters.updates:LowRank.shape",
)
def test_adapters_of_every_kind_in_one_file(api: Api, target: Target, tmp_path: Path) -> None:
    """Low-rank, Kronecker and Hadamard products with magnitudes change a song, and go again."""
    from safetensors.torch import save_file

    pytest.importorskip("peft", reason="an extra: acestep[train]")
    handler = initialised(api, target.device)
    before = transformer_weights(handler)
    out, width = before["layers.0.self_attn.to_q.weight"].shape
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    stem = "diffusion_model.decoder.layers.0.self_attn."
    parts = {
        "q_proj": {
            "lora_A.weight": drawn(2, width),
            "lora_B.weight": drawn(out, 2),
            "dora_scale": torch.ones(1, width),
        },
        "o_proj": {"lokr_w1": drawn(2, 2), "lokr_w2_a": drawn(width // 2, 2)}
        | {"lokr_w2_b": drawn(2, out // 2), "dora_scale": torch.ones(width, 1)},
    }
    cross = "lycoris_layers_0_cross_attn_q_proj."
    file = {f"{stem}{name}.{part}": v for name, held in parts.items() for part, v in held.items()}
    for number in (1, 2):
        file[f"{cross}hada_w{number}_a"] = drawn(out, 2)
        file[f"{cross}hada_w{number}_b"] = drawn(2, width)
    file[f"{cross}dora_scale"] = torch.ones(out, 1)
    save_file(file, tmp_path / "mixed.safetensors")
    plain = song(generate(api, handler))
    handler.load_lora(tmp_path / "mixed.safetensors")
    assert not torch.equal(song(generate(api, handler)), plain)
    handler.unload_lora()
    after = transformer_weights(handler)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
