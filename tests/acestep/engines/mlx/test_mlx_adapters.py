"""Tests of adapters under MLX: what PyTorch makes of the same file, and gone to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlx_sides import load, velocities, worst
from safetensors.torch import save_file

from acestep.checkpoint.kinds import Checkpoint
from acestep.device import resolve
from acestep.errors import CheckpointError, RequestError
from acestep.handler import AceStepHandler

mx = pytest.importorskip("mlx.core", reason="there is no MLX for this system")

LAYERS = ("layers.0.self_attn.q_proj", "layers.1.cross_attn.o_proj", "layers.1.mlp.down_proj")
Handlers = tuple[AceStepHandler, AceStepHandler]


@pytest.fixture
def handlers(engines: Callable[[str], Any]) -> Iterator[Handlers]:
    """One of each engine over the same checkpoint; adapters are off at the end."""
    made = AceStepHandler(), AceStepHandler()
    for handler, engine in zip(made, engines("base"), strict=True):
        handler.adopt(
            engine, resolve("cpu", engine=engine.name), Checkpoint("b", Path(), "original")
        )
    yield made
    for handler in made:
        handler.unload_lora()


def factors(kind: str, transformer: Any) -> dict[str, torch.Tensor]:
    """An adapter of a kind, of all the layers."""
    draw = torch.Generator().manual_seed(2)
    named = {name.replace("_proj", ""): module for name, module in transformer.named_modules()}

    def drawn(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=draw)

    made: dict[str, torch.Tensor] = {}
    for stem in LAYERS:
        short = {"q": "to_q", "o": "to_out.0"}
        owner, _, leaf = stem.removesuffix("_proj").rpartition(".")
        out, width = named[f"{owner}.{short.get(leaf, leaf)}"].weight.shape
        if kind == "lokr":
            made |= {f"{stem}.lokr_w1": drawn(4, 2), f"{stem}.lokr_w2": drawn(out // 4, width // 2)}
            continue
        made |= {f"{stem}.lora_A.weight": drawn(3, width), f"{stem}.lora_B.weight": drawn(out, 3)}
        if kind == "dora":
            made[f"{stem}.lora_magnitude_vector"] = 1 + drawn(out).abs()
    return made


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
def test_the_same_music_as_in_torch(
    handlers: Handlers, state: torch.Tensor, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "my.safetensors"
    assert handlers[0].pipeline is not None
    save_file(factors(kind, handlers[0].pipeline.transformer), file)
    plain = velocities(handlers[1].engine, state)
    for scale in (1.0, 0.4):
        for handler in handlers:
            handler.load_lora(file, scale)
        adapted = [velocities(handler.engine, state) for handler in handlers]
        assert worst(adapted[1], plain) > 1e-2
        assert worst(*adapted) < 5e-5
    handlers[1].disable_lora()
    assert torch.equal(velocities(handlers[1].engine, state), plain)
    handlers[1].set_lora_scale(1.0)
    handlers[1].unload_lora()
    assert torch.equal(velocities(handlers[1].engine, state), plain)


def test_what_cannot_be_put_on_is_refused(handlers: Handlers, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    stem = "layers.0.mlp.up_proj"
    odd = {f"{stem}.lora_A.weight": torch.zeros(2, 5), f"{stem}.lora_B.weight": torch.zeros(7, 2)}
    save_file(odd, file)
    with pytest.raises(CheckpointError, match="made for a transformer of another width"):
        handlers[1].load_lora(file)
    with pytest.raises(RequestError, match="no adapter is loaded"):
        handlers[1].set_lora_scale(0.5)
    small = AceStepHandler()
    policy = resolve("cpu", engine="mlx", quantization="int8")
    small.adopt(load("base", "mlx", quantization="int8"), policy, Checkpoint("b", Path(), "single"))
    with pytest.raises(RequestError, match="adapters cannot be added to quantised weights"):
        small.load_lora(file)
