"""Tests of checkpoints and language models in few bits: made once, loaded without the original."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.acestep_v15_pipeline import main
from acestep.checkpoint.finding import find
from acestep.checkpoint.held import Held
from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.loading import load
from acestep.checkpoint.small import saved_small
from acestep.device import resolve
from acestep.engines.loading import Options, load_engine, packing
from acestep.errors import AceStepError, CheckpointError, RequestError
from acestep.handler import AceStepHandler

ORIGINAL = Path(__file__).parents[1] / "original" / "checkpoints"
soak = pytest.mark.soak
ENGINES = [
    pytest.param("torch", "fp8"), pytest.param("mlx", "4bit"),
    pytest.param("torch", "int8", marks=soak), pytest.param("torch", "int4", marks=soak),
    pytest.param("torch", "w8a8", marks=soak), pytest.param("mlx", "8bit", marks=soak),
]  # fmt: skip


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where checkpoints are found by name."""
    monkeypatch.setenv("ACESTEP_CHECKPOINTS", str(tmp_path))
    return tmp_path


def original() -> Checkpoint:
    return find(str(ORIGINAL / "acestep-v15-turbo"))


def _policy(engine: str, kind: str | None) -> Any:
    if engine == "mlx":
        pytest.importorskip("mlx.core", reason="there is no MLX for this system")
    return resolve("cpu", dtype="float32", engine=engine, quantization=kind)


def _parts(engine: Any) -> Iterator[tuple[str, Any]]:
    """All that an engine holds, by name, as it holds it."""
    if engine.name == "torch":
        for name, module in sorted(engine.pipeline.components.items()):
            if isinstance(module, torch.nn.Module):
                yield from ((f"{name}.{key}", value) for key, value in module.state_dict().items())
        return
    from mlx.utils import tree_flatten

    parts = engine.parts
    for name in ("transformer", "condition_encoder", "text_encoder", "detokenizer"):
        yield from ((f"{name}.{key}", value) for key, value in
                    tree_flatten(getattr(parts, name).parameters()))  # fmt: skip
    yield from tree_flatten(parts.codec.vae.parameters())
    yield "silence", parts.silence


@pytest.mark.parametrize(("engine", "suffix"), ENGINES)
def test_a_folder_is_what_is_made_at_load(
    engine: str, suffix: str, roots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the bit, in every tensor and dtype; the original is not looked at."""
    kind = {"8bit": "int8", "4bit": "int4"}.get(suffix, suffix)
    made = load_engine(original(), _policy(engine, kind), Options())
    shutil.copytree(ORIGINAL, roots / "there")
    source = str(roots / "there" / "acestep-v15-turbo")
    command = ["download", source, "--quantize", kind, "--engine", engine, "--to", str(roots)]
    assert main(command) == 0
    shutil.rmtree(roots / "there")
    folder = roots / f"acestep-v15-turbo-{suffix}"
    assert capsys.readouterr().out.strip() == str(folder)
    handler = AceStepHandler()
    message, ready = handler.initialize_service(
        None, folder.name, "cpu", engine=engine, dtype="float32"
    )
    assert ready, message
    assert f"{kind} weights" in message
    assert handler.engine is not None
    one, other = dict(_parts(made)), dict(_parts(handler.engine))
    assert len(one) > 100
    assert one.keys() == other.keys()
    assert all(value.dtype == other[name].dtype for name, value in one.items())
    for name, value in one.items():
        # Silence is repeated where it ends.
        same = other[name][..., : value.shape[-2], :] if "silence" in name else other[name]
        assert bool((value == same).all()), name
    assert not list(roots.glob(".*"))
    if engine == "torch":
        song = handler.generate_music("piano", audio_duration=0.6, inference_steps=1)
        assert song["success"], song["error"]


def test_what_is_held_is_used_as_it_is_or_refused(roots: Path) -> None:
    """Each in one line: another engine, other bits, few bits of few bits, another folder there."""
    folder = saved_small(
        original(), roots / "small", "torch", "int8", packing(_policy("torch", "8"))
    )
    assert (
        saved_small(original(), folder, "torch", "int8", packing(_policy("torch", "8"))) == folder
    )
    held = find("small").held
    assert held == Held("torch", "int8", "F32")
    assert held.agreed("small", resolve("cpu")).quantization == "int8"
    for policy, said in (
        (replace(resolve("cpu"), engine="mlx"), "held in int8 for the engine 'torch', and 'mlx'"),
        (_policy("torch", "fp8"), "small is held in int8; leave out --quantize"),
    ):
        with pytest.raises(RequestError, match=said):
            held.agreed("small", policy)
    with pytest.raises(RequestError, match="small is in int8 already"):
        saved_small(find("small"), roots / "again", "torch", "int8", dict)
    with pytest.raises(RequestError, match="holds no weights in int4 for the engine 'torch'"):
        saved_small(original(), folder, "torch", "int4", dict)
    with pytest.raises(RequestError, match="small is held in int8, and whole weights are needed"):
        load(find("small"), resolve("cpu"))


def test_a_folder_that_is_damaged_or_half_is_refused(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says and what it holds differ, a tensor is missing, it is newer than this program; and
    what is interrupted leaves nothing."""
    pack = packing(_policy("torch", "int4"))
    folder = saved_small(original(), roots / "small", "torch", "int4", pack)
    index, file = folder / "model_index.json", folder / "transformer" / "model.safetensors"
    said = json.loads(index.read_text())
    policy = _policy("torch", "int8")

    def refused(error: type[AceStepError], match: str) -> None:
        with pytest.raises(error, match=match):
            found = find("small")
            load_engine(found, found.held.agreed("small", resolve("cpu")), Options())

    index.write_text(json.dumps(said | {"quantization": said["quantization"] | {"kind": "int8"}}))
    refused(CheckpointError, r"' has shape .*, its config asks for")
    index.write_text(json.dumps(said | {"quantization": said["quantization"] | {"kind": "int3"}}))
    refused(CheckpointError, "weights held in int3 for the engine 'torch', which are not known")
    index.write_text(json.dumps(said))
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".scale"))
    save_file(tensors | {name: tensors[name][0, 0].clone()}, file)
    refused(CheckpointError, rf"'{name}' has shape \(\), its config asks for")
    del tensors[name]
    save_file(tensors, file)
    refused(CheckpointError, f"1 tensors are missing from its weights, among them '{name}'")

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved_small(original(), roots / "half", "torch", "int8", packing(policy))
    assert [path.name for path in roots.iterdir()] == ["small"]
