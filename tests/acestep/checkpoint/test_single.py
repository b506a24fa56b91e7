"""Tests of single-file checkpoints, written as ComfyUI's files are."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.checkpoint.distilled import is_distilled
from acestep.checkpoint.finding import find, identify
from acestep.checkpoint.single.configs import dit_config, text_config, vae_config
from acestep.checkpoint.single.parts import DIT, LANGUAGE, TEXT_ENCODER, VAE, parts_of
from acestep.device import resolve
from acestep.engines.torch.loading import load_pipeline
from acestep.errors import CheckpointError
from acestep.handler import AceStepHandler
from acestep.song.request import Request

Tensors = dict[str, torch.Tensor]
TEXT_PREFIX = "text_encoders.qwen3_06b.transformer.model."


@pytest.fixture(autouse=True)
def _no_other_checkpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo_folder: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / demo_folder.name).symlink_to(demo_folder)
    monkeypatch.setenv("ACESTEP_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def original(
    base_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    write_original: Callable[..., Path],
) -> Path:
    """The small checkpoint in the original layout: the transformer's folder."""
    return write_original(base_folder, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def expected(base_folder: Path) -> torch.Tensor:
    return latents(base_folder)


def latents(path: Path) -> torch.Tensor:
    handler = AceStepHandler()
    handler.load(str(path), resolve("cpu"))
    request = Request("a song", (4,), lyrics="[verse]\nla", duration=1.0, steps=2, guidance_scale=3)
    return handler.generate(request).tensors["pred_latents"]


def dit_of(original: Path) -> Tensors:
    return load_file(original / "model.safetensors")


def text_of(original: Path) -> Tensors:
    tensors = load_file(original.parent / "Qwen3-Embedding-0.6B" / "model.safetensors")
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def vae_of(original: Path, stable_audio: bool = True) -> Tensors:
    tensors = load_file(original.parent / "vae" / "diffusion_pytorch_model.safetensors")
    if not stable_audio:
        return tensors
    return {stable_audio_name(name): flat(name, value) for name, value in tensors.items()}


def stable_audio_name(name: str) -> str:
    """The VAE's names in stable-audio-tools, from its modules in their order; five blocks."""
    side, rest = name.split(".", 1)
    if match := re.match(r"block\.(\d)\.(.+)$", rest):
        number, rest = int(match[1]) + 1, match[2]
        unit = re.match(r"res_unit(\d)\.(snake1|conv1|snake2|conv2)\.(.+)$", rest)
        if unit:
            place = int(unit[1]) + (-1 if side == "encoder" else 1)
            leaf = ("snake1", "conv1", "snake2", "conv2").index(unit[2])
            rest = f"layers.{place}.layers.{leaf}.{unit[3]}"
        else:
            module, leaf_name = rest.split(".", 1)
            if side == "encoder":
                place = {"snake1": 3, "conv1": 4}[module]
            else:
                place = {"snake1": 0, "conv_t1": 1}[module]
            rest = f"layers.{place}.{leaf_name}"
    else:
        module, rest = rest.split(".", 1)
        number = {"conv1": 0, "snake1": 6, "conv2": 7}[module]
    name = f"{side}.layers.{number}.{rest}"
    if side == "encoder":
        name = name.replace("weight_g", "parametrizations.weight.original0")
        name = name.replace("weight_v", "parametrizations.weight.original1")
    return name


def flat(name: str, value: torch.Tensor) -> torch.Tensor:
    return value.flatten() if name.endswith(("alpha", "beta")) else value


def all_in_one(original: Path) -> Tensors:
    return {
        **{f"model.diffusion_model.{k}": v for k, v in dit_of(original).items()},
        **{TEXT_PREFIX + k: v for k, v in text_of(original).items()},
        **{f"vae.{k}": v for k, v in vae_of(original).items()},
    }


def settings(original: Path, file: Path, **more: Any) -> None:
    """What shapes do not say of the small checkpoint: its text encoder's rotary base."""
    text = json.loads((original.parent / "Qwen3-Embedding-0.6B" / "config.json").read_text())
    told = {"text_config": {"rope_parameters": text["rope_parameters"]}, **more}
    file.with_suffix(".json").write_text(json.dumps(told))


def tokenizer_beside(original: Path, folder: Path) -> None:
    for file in (original.parent / "Qwen3-Embedding-0.6B").glob("*token*.json"):
        shutil.copy(file, folder)


def put(original: Path, folder: Path, name: str = "ace_step_1.5_base_aio") -> Path:
    """An all-in-one file with what a small checkpoint needs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    save_file(all_in_one(original), file)
    settings(original, file)
    tokenizer_beside(original, folder)
    shutil.copy(original / "silence_latent.pt", folder)
    return file


def test_all_in_one_gives_the_latents_of_its_folders(
    original: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    file = put(original, tmp_path / "models")
    assert identify(file).layout == "single"  # type: ignore[union-attr]
    assert torch.equal(latents(file), expected)
    pipeline = load_pipeline(find(str(file)), resolve("cpu"))
    reference = load_pipeline(find(str(original)), resolve("cpu"))
    for name in ("vae", "text_encoder", "condition_encoder", "audio_tokenizer"):
        ours, theirs = (getattr(p, name).state_dict() for p in (pipeline, reference))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_configs_follow_from_shapes(original: Path, base_folder: Path, tmp_path: Path) -> None:
    parts = parts_of(put(original, tmp_path / "models"))
    assert set(parts) == {DIT, TEXT_ENCODER, VAE}
    stored = json.loads((original / "config.json").read_text())
    made = dit_config(parts[DIT])
    assert not made["is_turbo"]
    unread = {"is_turbo", "text_config"}
    assert {k: v for k, v in made.items() if k not in unread} == {
        k: stored[k] for k in made if k not in unread
    }
    vae = json.loads((base_folder / "vae" / "config.json").read_text())
    assert vae_config(parts[VAE]) == {k: v for k, v in vae.items() if not k.startswith("_")}
    text = json.loads((base_folder / "text_encoder" / "config.json").read_text())
    for key in ("vocab_size", "hidden_size", "num_attention_heads", "head_dim"):
        assert text_config(parts[TEXT_ENCODER])[key] == text[key]


def test_xl_widths_follow_from_shapes(tmp_path: Path) -> None:
    """Named as XL's are, of XL's shapes, one layer each and without storage to speak of."""
    shapes = {
        "decoder.norm_out.weight": (2560,), "decoder.proj_in.1.weight": (2560, 192, 2),
        "decoder.proj_out.1.weight": (2560, 64, 2), "encoder.text_projector.weight": (2048, 1024),
        "encoder.lyric_encoder.norm.weight": (2048,),
        "encoder.timbre_encoder.embed_tokens.weight": (2048, 64),
    }  # fmt: skip
    for stack, (hidden, heads, wide) in {
        "decoder.layers.0.": (2560, 32, 9728),
        "encoder.lyric_encoder.layers.0.": (2048, 16, 6144),
        "encoder.timbre_encoder.layers.0.": (2048, 16, 6144),
    }.items():
        shapes |= {
            f"{stack}self_attn.q_norm.weight": (128,), f"{stack}input_layernorm.weight": (hidden,),
            f"{stack}self_attn.q_proj.weight": (heads * 128, hidden),
            f"{stack}self_attn.k_proj.weight": (1024, hidden),
            f"{stack}mlp.gate_proj.weight": (wide, hidden),
        }  # fmt: skip
    file = tmp_path / "acestep_v1.5_xl_turbo_bf16.safetensors"
    save_file({k: torch.zeros(v, dtype=torch.float8_e4m3fn) for k, v in shapes.items()}, file)
    made = dit_config(parts_of(file)[DIT])
    assert made["is_turbo"]
    assert (made["hidden_size"], made["num_attention_heads"], made["head_dim"]) == (2560, 32, 128)
    assert (made["encoder_hidden_size"], made["encoder_num_attention_heads"]) == (2048, 16)
    assert made["encoder_intermediate_size"] == 6144


def test_parts_apart_in_comfyui_folders(
    original: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    models = tmp_path / "ComfyUI" / "models"
    files = {
        "diffusion_models/acestep_v1.5_base.safetensors": dit_of(original),
        "text_encoders/qwen_0.6b_ace15.safetensors": {
            f"model.{name}": value for name, value in text_of(original).items()
        },
        "vae/ace_1.5_vae.safetensors": vae_of(original),
        # Others' files lie there too: another VAE, another family's text encoder, Qwen3 itself.
        "text_encoders/llama.safetensors": {
            "model.embed_tokens.weight": torch.zeros(9, 64),
            "model.layers.0.post_attention_layernorm.weight": torch.zeros(64),
        },
        "text_encoders/qwen_3_06b_base.safetensors": {
            **{f"model.{name}": value for name, value in text_of(original).items()},
            "model.embed_tokens.weight": torch.zeros(151936, 64, dtype=torch.float8_e4m3fn),
        },
        "vae/other.safetensors": {"decoder.conv_in.weight": torch.zeros(4)},
    }
    for name, tensors in files.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, models / name)
    (models / "vae" / "broken.safetensors").write_bytes(b"short")
    dit = models / "diffusion_models" / "acestep_v1.5_base.safetensors"
    settings(original, models / "text_encoders" / "qwen_0.6b_ace15.safetensors")
    told = (models / "text_encoders" / "qwen_0.6b_ace15.json").read_text()
    shutil.copy(original / "silence_latent.pt", dit.parent)
    with pytest.raises(CheckpointError, match=r"no tokenizer.*acestep download turbo"):
        latents(dit)
    tokenizer_beside(original, models / "text_encoders")
    assert told
    assert torch.equal(latents(dit), expected)
    (models / "vae" / "ace_1.5_vae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no VAE, .*ace_1.5_vae.safetensors beside it"):
        latents(dit)
    save_file(vae_of(original, stable_audio=False), models / "vae" / "one.safetensors")
    assert torch.equal(latents(dit), expected)
    save_file(vae_of(original), models / "vae" / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"one.safetensors and two.safetensors both fit"):
        latents(dit)
    (models / "vae" / "two.safetensors").rename(models / "vae" / "ace.safetensors")
    assert torch.equal(latents(dit), expected)
    with pytest.raises(CheckpointError, match=r"with its DiT \(this one holds VAE\)"):
        find(str(models / "vae" / "ace.safetensors"))


def test_the_rest_comes_from_another_checkpoint(
    original: Path,
    expected: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_file(dit_of(original), tmp_path / "acestep_v1.5_base.safetensors")
    with pytest.raises(CheckpointError, match=r"has no VAE"):
        latents(tmp_path / "acestep_v1.5_base.safetensors")
    monkeypatch.setenv("ACESTEP_CHECKPOINTS", str(original.parent))
    assert torch.equal(latents(tmp_path / "acestep_v1.5_base.safetensors"), expected)


@pytest.mark.parametrize("ending", ["weight_scale", "scale_weight", None])
def test_float8_weights_are_scaled(original: Path, tmp_path: Path, ending: str | None) -> None:
    """float8 with a scale for a tensor or a row, or as it is, beside what engines add."""
    file = put(original, tmp_path / "models")
    tensors = load_file(file)
    expected: dict[str, torch.Tensor] = {}
    for number, name in enumerate(list(tensors)):
        if not re.search(r"layers\.\d+\.(self_attn|cross_attn|mlp)\..*_proj\.weight$", name):
            continue
        value = tensors[name]
        per_row = value.abs().amax(dim=1, keepdim=True) if number % 2 else value.abs().max()
        scale = per_row / 448 if ending else torch.ones(())
        small = (value / scale).to(torch.float8_e4m3fn)
        tensors[name] = small
        expected[name] = small.float() * scale
        if ending:
            stem = name.removesuffix("weight")
            tensors[stem + ending] = scale
            tensors[stem + "input_scale"] = torch.ones(())
            tensors[stem + "comfy_quant"] = torch.zeros(30, dtype=torch.uint8)
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(tensors, file)
    pipeline = load_pipeline(find(str(file)), resolve("cpu"))
    weight = pipeline.transformer.layers[1].mlp.down_proj.weight
    name = "model.diffusion_model.decoder.layers.1.mlp.down_proj.weight"
    assert torch.equal(weight, expected[name])
    read = pipeline.text_encoder.layers[1].mlp.down_proj.weight
    assert torch.equal(read, expected[TEXT_PREFIX + "layers.1.mlp.down_proj.weight"])
    half = load_pipeline(find(str(file)), resolve("cpu", dtype="bfloat16")).transformer
    assert torch.equal(half.layers[1].mlp.down_proj.weight, expected[name].bfloat16())


@pytest.mark.parametrize(
    ("name", "told", "turbo"),
    [
        ("ace_step_1.5_turbo_aio", {}, True),
        ("acestep_v1.5_xl_sft_bf16", {}, False),
        ("mine", {"is_turbo": True}, True),
        ("turbo", {"is_turbo": False}, False),
        ("merge_sft_turbo", {"model_version": "turbo"}, True),
    ],
)
def test_distilled_by_settings_or_name(
    original: Path, tmp_path: Path, name: str, told: dict[str, Any], turbo: bool
) -> None:
    file = put(original, tmp_path / "models", name)
    settings(original, file, **told)
    assert load_pipeline(find(str(file)), resolve("cpu")).is_turbo is turbo
    assert is_distilled(find(str(file))) is turbo


@pytest.mark.parametrize(
    ("name", "said"),
    [("mine", "neither turbo nor base nor sft"), ("merge_turbo_sft", "turbo and sft")],
)
def test_undecidable_is_refused(original: Path, tmp_path: Path, name: str, said: str) -> None:
    file = put(original, tmp_path / "models", name)
    with pytest.raises(CheckpointError, match=rf"has {said}; put a file {name}\.json") as caught:
        load_pipeline(find(str(file)), resolve("cpu"))
    assert "\n" not in str(caught.value)


def test_silence_without_a_file_is_the_vaes(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = put(original, tmp_path / "models")
    (file.parent / "silence_latent.pt").unlink()
    with caplog.at_level(logging.WARNING, "acestep.checkpoint"):
        pipeline = load_pipeline(find(str(file)), resolve("cpu"))
    assert "silence is what its VAE makes of it" in caplog.text
    made = pipeline.condition_encoder.silence_latent
    assert made.shape == (1, 15000, 4)
    audio = torch.zeros(1, 2, 1920 * 64)
    with torch.no_grad():
        whole = pipeline.vae.encode(audio).latent_dist.mean[0].T
    torch.testing.assert_close(made[0, :8], whole[24:32], rtol=0, atol=1e-5)


def test_mlx_reads_the_same_file(original: Path, tmp_path: Path) -> None:
    """float8 with a scale, and silence that its own VAE makes."""
    pytest.importorskip("mlx.core", reason="there is no MLX for this system")
    from acestep.engines.loading import Options, load_engine
    from acestep.engines.mlx.arrays import to_torch

    file = put(original, tmp_path / "models")
    (file.parent / "silence_latent.pt").unlink()
    tensors, stem = load_file(file), "model.diffusion_model.decoder.layers.1.mlp.down_proj."
    scale = tensors[stem + "weight"].abs().max() / 448
    tensors[stem + "weight"] = (tensors[stem + "weight"] / scale).to(torch.float8_e4m3fn)
    save_file(tensors | {stem + "weight_scale": scale}, file)
    torchs, mlxs = (
        load_engine(find(str(file)), resolve("cpu", dtype="float32", engine=name), Options())
        for name in ("torch", "mlx")
    )
    read = mlxs.parts.transformer.layers[1].mlp.down_proj.weight
    assert torch.equal(to_torch(read), torchs.pipeline.transformer.layers[1].mlp.down_proj.weight)
    torch.testing.assert_close(mlxs.silence(20), torchs.silence(20), rtol=0, atol=1e-5)


def test_on_a_simulated_mac(original: Path, tmp_path: Path, expected: torch.Tensor) -> None:
    """Silence and float8 within what MPS takes: short convolutions, no float8 on the device."""
    from conformance import simulate

    file = put(original, tmp_path / "models")
    (file.parent / "silence_latent.pt").unlink()
    tensors = load_file(file)
    name = f"{TEXT_PREFIX}layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    host = load_pipeline(find(str(file)), resolve("cpu")).condition_encoder.silence_latent
    with simulate.mps(macos="15.5", memory_gb=16):
        pipeline = load_pipeline(find(str(file)), resolve("mps", dtype="float32"))
        made = pipeline.condition_encoder.silence_latent
        assert made.device.type == "mps"
        torch.testing.assert_close(made.cpu(), host, rtol=0, atol=1e-5)


def edited(file: Path, edit: Callable[[Tensors], Tensors]) -> None:
    save_file(edit(load_file(file)), file)


NORM = "model.diffusion_model.decoder.norm_out.weight"
PROJ = "model.diffusion_model.decoder.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t | {"model.diffusion_model.odd": torch.zeros(1)}, "unexpected tensor '.*odd'"),
        (lambda t: {k: v for k, v in t.items() if k != NORM}, "no tensor 'decoder.norm_out.weight'"),
        (lambda t: {k: v for k, v in t.items() if k != PROJ + "weight"}, "1 tensors are missing"),
        (lambda t: t | {PROJ + "weight": torch.zeros(3, 3)}, r"has shape \(3, 3\), its config"),
        (
            lambda t: t | {PROJ + "weight": torch.zeros(170, 64, dtype=torch.int8)},
            "is stored as I8, expected bfloat16",
        ),
        (lambda t: t | {PROJ + "weight_scale": torch.ones(7)}, r"shape \(7,\), expected one scale"),
        (
            lambda t: t | {"model.diffusion_model.decoder.odd.weight_scale": torch.ones(())},
            "odd.weight_scale' is a scale of nothing",
        ),
        (lambda t: t | {"vae.encoder.layers.0.bias": torch.zeros(3)}, r"bias' has shape \(3,\)"),
        (
            lambda t: {k: v for k, v in t.items() if k != "vae.decoder.layers.7.weight_v"},
            "VAE has no tensor 'decoder.conv2.weight_v'",
        ),
        (
            lambda t: {k: v for k, v in t.items() if not k.endswith("layers.0.self_attn.q_norm.weight")},
            "to read widths from",
        ),
    ],
)  # fmt: skip
def test_misfits_are_one_line(
    original: Path, tmp_path: Path, edit: Callable[[Tensors], Tensors], message: str
) -> None:
    file = put(original, tmp_path / "models")
    edited(file, edit)
    handler = AceStepHandler()
    said, ok = handler.initialize_service(None, str(file), "cpu")
    assert not ok
    assert re.search(message, said), said
    assert str(file) in said
    assert "\n" not in said


def test_found_by_name_and_skipped_when_damaged(original: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "checkpoints"
    file = put(original, root)
    (root / "half.safetensors").write_bytes(b"short")
    assert find("base").path == file
    assert find("auto").path == file
    assert find("ace_step_1.5_base_aio").path == file
    with pytest.raises(CheckpointError, match="not a safetensors file, or truncated"):
        find("half")


def test_language_models_are_told_apart(tmp_path: Path) -> None:
    layer = "layers.0.post_attention_layernorm.weight"
    tensors = {
        "text_encoders.qwen3_2b.transformer.model.embed_tokens.weight": torch.zeros(217204, 1),
        f"text_encoders.qwen3_2b.transformer.model.{layer}": torch.zeros(1),
        "text_encoders.qwen3_06b.transformer.model.embed_tokens.weight": torch.zeros(151669, 1),
        f"text_encoders.qwen3_06b.transformer.model.{layer}": torch.zeros(1),
    }
    save_file(tensors, tmp_path / "both.safetensors")
    parts = parts_of(tmp_path / "both.safetensors")
    assert set(parts) == {TEXT_ENCODER, LANGUAGE}
    assert parts[LANGUAGE].shapes["embed_tokens.weight"] == (217204, 1)
    assert parts[TEXT_ENCODER].shapes["embed_tokens.weight"] == (151669, 1)
