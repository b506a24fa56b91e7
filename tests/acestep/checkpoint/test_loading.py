"""Tests of loading: the original layout, its twin, and damaged files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.checkpoint.finding import find
from acestep.checkpoint.kinds import Checkpoint
from acestep.checkpoint.original import original_name
from acestep.device import DevicePolicy, resolve
from acestep.engines.torch.loading import load_pipeline
from acestep.errors import CheckpointError
from acestep.handler import AceStepHandler
from acestep.song.request import Request


def loaded(folder: Path) -> AceStepHandler:
    handler = AceStepHandler()
    handler.load(str(folder), resolve("cpu"))
    return handler


@pytest.mark.parametrize("shards", [1, 3])
def test_original_layout_gives_the_latents_of_its_twin(
    base_folder: Path,
    base_handler: AceStepHandler,
    tmp_path: Path,
    shards: int,
    write_original: Callable[..., Path],
) -> None:
    dit = write_original(base_folder, tmp_path / "checkpoints", shards)
    twin = loaded(dit)
    assert twin.checkpoint is not None
    assert twin.checkpoint.layout == "original"
    request = Request("a song", (4,), lyrics="[verse]\nla", duration=1.0, guidance_scale=3.0)
    ours, theirs = (h.generate(request).tensors["pred_latents"] for h in (twin, base_handler))
    assert torch.equal(ours, theirs)
    codes = Request(
        "a song", (4,), audio_codes="<|audio_code_7|><|audio_code_63999|>", task="cover"
    )
    ours, theirs = (h.generate(codes).tensors["pred_latents"] for h in (twin, base_handler))
    assert torch.equal(ours, theirs)


def test_xl_gives_the_condition_encoder_its_own_widths(
    tmp_path: Path, write_original: Callable[..., Path]
) -> None:
    from acestep.demo.recipe import DemoShape, make_pipeline

    wide = make_pipeline(DemoShape(hidden=128, layers=1, text_hidden=64))
    narrow = make_pipeline(DemoShape(hidden=64, layers=1, text_hidden=64))
    from diffusers.models import AceStepTransformer1DModel

    settings = {k: v for k, v in wide.transformer.config.items() if not k.startswith("_")}
    transformer = AceStepTransformer1DModel(**{**settings, "encoder_hidden_size": 64})
    narrow.register_modules(transformer=transformer)
    narrow.save_pretrained(tmp_path / "xl")
    dit = write_original(tmp_path / "xl", tmp_path / "checkpoints", xl=True)
    pipeline = load_pipeline(find(str(dit)), resolve("cpu"))
    assert pipeline.transformer.config.hidden_size == 128
    assert pipeline.condition_encoder.config.hidden_size == 64
    assert pipeline.audio_tokenizer.config.hidden_size == 64
    state = transformer.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in pipeline.transformer.state_dict().items())


def test_every_parameter_has_its_dtype_and_a_value(demo_folder: Path) -> None:
    policy = resolve("cpu", dtype="bfloat16")
    pipeline = load_pipeline(Checkpoint("demo", demo_folder, "diffusers"), policy)
    for name in ("transformer", "condition_encoder", "vae", "text_encoder", "audio_tokenizer"):
        module = getattr(pipeline, name)
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
            assert tensor.device == torch.device("cpu"), key
            if tensor.is_floating_point() and "inv_freq" not in key:
                assert tensor.dtype == torch.bfloat16, key


def test_names_outside_the_layout_have_no_place() -> None:
    assert original_name("decoder.layers.0.self_attn.q_proj.weight") == (
        "transformer",
        "layers.0.self_attn.to_q.weight",
    )
    assert original_name("decoder.proj_in.1.bias") == ("transformer", "proj_in_conv.bias")
    assert original_name("null_condition_emb") == (
        "condition_encoder",
        "null_condition_emb",
    )
    for name in ("optimizer.state", "decoder", "other"):
        assert original_name(name) is None


def truncate(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5])


def garble_header(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:12] = b"!!!!"
    file.write_bytes(data)


def edit_state(folder: Path, component: str, edit: Callable[[dict[str, Any]], None]) -> None:
    file = folder / component / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    edit(state)
    save_file(state, file)


def drop_tensor(folder: Path) -> None:
    edit_state(folder, "transformer", lambda state: state.pop("norm_out.weight"))


def add_tensor(folder: Path) -> None:
    edit_state(folder, "transformer", lambda s: s.update(extra=torch.zeros(1)))


def reshape_tensor(folder: Path) -> None:
    edit_state(folder, "transformer", lambda s: s.update({"norm_out.weight": torch.zeros(3)}))


def wrong_class(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')


def wrong_config(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text('{"downsampling_ratios": "many"}')


def lose_config(folder: Path) -> None:
    (folder / "condition_encoder" / "config.json").unlink()


def lose_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def garble_tokenizer(folder: Path) -> None:
    for file in (folder / "tokenizer").iterdir():
        file.write_text("{")


def drop_text_tensor(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    state = load_file(file)
    state.pop("norm.weight")
    save_file(state, file, metadata={"format": "pt"})


def wrong_text_config(folder: Path) -> None:
    (folder / "text_encoder" / "config.json").write_text('{"model_type": "no-such-model"}')


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (truncate, r"diffusion_pytorch_model.safetensors: has \d+ bytes, its header says \d+"),
        (cut_header, "not a safetensors file, or truncated"),
        (garble_header, "its header is damaged"),
        (drop_tensor, r"transformer: 1 tensors are missing .* 'norm_out.weight'"),
        (add_tensor, r"unexpected tensor 'extra'"),
        (reshape_tensor, r"'norm_out.weight' has shape \(3,\), its config asks for \(64,\)"),
        (wrong_class, "holds a StableAudioPipeline, expected an AceStepPipeline"),
        (wrong_config, r"config.json: does not describe a AutoencoderOobleck"),
        (lose_config, r"condition_encoder/config.json: missing file"),
        (lose_tokenizer, "tokenizer: missing folder"),
        (garble_tokenizer, "the tokenizer cannot be loaded"),
        (drop_text_tensor, r"missing keys: norm.weight"),
        (wrong_text_config, "the text encoder cannot be loaded"),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    base_folder: Path, tmp_path: Path, policy: DevicePolicy, damage: Any, expected: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(base_folder, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_pipeline(find(str(folder)), policy)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_silence(
    base_folder: Path, tmp_path: Path, policy: DevicePolicy, write_original: Callable[..., Path]
) -> None:
    dit = write_original(base_folder, tmp_path / "checkpoints")
    file = dit / "silence_latent.pt"
    for content, expected in (
        (b"not a pickle", "damaged"),
        (None, "expected a tensor of shape"),
        (b"", "damaged"),
    ):
        if content is None:
            torch.save({"a": 1}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(CheckpointError, match=expected):
            load_pipeline(find(str(dit)), policy)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"silence_latent.pt: missing file"):
        load_pipeline(find(str(dit)), policy)


def test_pickles_are_not_executed(
    base_folder: Path, tmp_path: Path, policy: DevicePolicy, write_original: Callable[..., Path]
) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    dit = write_original(base_folder, tmp_path / "checkpoints")
    (dit / "silence_latent.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="damaged"):
        load_pipeline(find(str(dit)), policy)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("part", ["vae", "Qwen3-Embedding-0.6B"])
def test_what_original_checkpoints_share_is_asked_for(
    base_folder: Path, tmp_path: Path, policy: DevicePolicy, part: str,
    write_original: Callable[..., Path],
) -> None:  # fmt: skip
    dit = write_original(base_folder, tmp_path / "checkpoints")
    shutil.rmtree(dit.parent / part)
    with pytest.raises(CheckpointError, match=f"{part}: missing .* acestep download turbo"):
        load_pipeline(find(str(dit)), policy)
