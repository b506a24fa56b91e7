"""Tests of adapters in every form that trainers write, against weights merged by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.checkpoint.adapters.layers import AdaptedLinear
from acestep.device import resolve
from acestep.errors import CheckpointError
from acestep.handler import AceStepHandler
from acestep.song.request import Request

Tensors = dict[str, torch.Tensor]
Merged = dict[str, Callable[[torch.Tensor, float], torch.Tensor]]
"""From a layer's name in diffusers to what its weight becomes at a scale."""

# diffusers' names of some layers of every sort, and the original's.
LAYERS = {
    "layers.0.self_attn.to_q": "layers.0.self_attn.q_proj",
    "layers.1.self_attn.to_v": "layers.1.self_attn.v_proj",
    "layers.0.cross_attn.to_out.0": "layers.0.cross_attn.o_proj",
    "layers.1.cross_attn.to_k": "layers.1.cross_attn.k_proj",
    "layers.1.mlp.gate_proj": "layers.1.mlp.gate_proj",
    "condition_embedder": "condition_embedder",
    "time_embed.time_proj": "time_embed.time_proj",
}


class Draws:
    """Random factors that change a song, from one seed."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.generator = torch.Generator().manual_seed(5)

    def matrix(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * 0.3

    def weight(self, name: str) -> torch.Tensor:
        weight: torch.Tensor = self.transformer.get_submodule(name).weight.detach()
        return weight

    def size(self, name: str) -> tuple[int, int]:
        out, into = self.weight(name).shape
        return out, into

    def lengths(self, name: str, along: int) -> torch.Tensor:
        """Magnitudes near a weight's own."""
        norm = self.weight(name).norm(dim=along, keepdim=True)
        return norm * (1 + 0.2 * torch.rand(norm.shape, generator=self.generator))


def rows(out: int) -> int:
    """A divisor of a layer's outputs."""
    return 8 if out % 8 == 0 else 10


def plus(delta: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
    return lambda weight, scale: weight + scale * delta


def decomposed(
    delta: torch.Tensor, magnitude: torch.Tensor
) -> Callable[[torch.Tensor, float], torch.Tensor]:
    def merge(weight: torch.Tensor, scale: float) -> torch.Tensor:
        merged = weight + scale * delta
        along = 1 if magnitude.shape[1] == 1 else 0
        return magnitude * merged / merged.norm(dim=along, keepdim=True)

    return merge


def peft_lora(folder: Path, draws: Draws) -> Merged:
    """A PEFT folder with patterns for ranks and alphas."""
    tensors, merged = Tensors(), Merged()
    for name, original in LAYERS.items():
        out, into = draws.size(name)
        rank = 3 if original.startswith("layers.1.cross_attn") else 4
        alpha = 2.0 if original == "condition_embedder" else 8.0
        down, up = draws.matrix(rank, into), draws.matrix(out, rank)
        tensors |= {
            f"base_model.model.{original}.lora_A.weight": down,
            f"base_model.model.{original}.lora_B.weight": up,
        }
        merged[name] = plus(alpha / rank * up @ down)
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": False, "bias": "none",
        "target_modules": ["q_proj"], "base_model_name_or_path": None,
        "rank_pattern": {r"layers\.1\.cross_attn\.k_proj": 3},
        "alpha_pattern": {"condition_embedder": 2},
    }  # fmt: skip
    write_folder(folder, tensors, config)
    return merged


def peft_dora(folder: Path, draws: Draws) -> Merged:
    tensors, merged = Tensors(), Merged()
    for name, original in LAYERS.items():
        out, into = draws.size(name)
        down, up, lengths = draws.matrix(4, into), draws.matrix(out, 4), draws.lengths(name, 1)
        stem = f"base_model.model.{original}"
        tensors |= {
            f"{stem}.lora_A.weight": down,
            f"{stem}.lora_B.weight": up,
            f"{stem}.lora_magnitude_vector": lengths[:, 0].contiguous(),
        }
        merged[name] = decomposed(up @ down / 2, lengths)
    write_folder(
        folder, tensors, {"peft_type": "LORA", "r": 4, "lora_alpha": 2.0, "use_dora": True}
    )
    return merged


def peft_rank_stabilised(folder: Path, draws: Draws) -> Merged:
    """Below `adapter/`, as one trainer stores it, and with names of the adapter in its keys."""
    name, original = "layers.0.self_attn.to_q", "layers.0.self_attn.q_proj"
    out, into = draws.size(name)
    down, up = draws.matrix(4, into), draws.matrix(out, 4)
    stem = f"base_model.model.decoder.{original}"
    tensors = {f"{stem}.lora_A.default.weight": down, f"{stem}.lora_B.default.weight": up}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_rslora": True}
    write_folder(folder / "adapter", tensors, config)
    return {name: plus(4 / 4**0.5 * up @ down)}


def peft_lokr(folder: Path, draws: Draws) -> Merged:
    tensors, merged = Tensors(), Merged()
    for name, original in LAYERS.items():
        out, into = draws.size(name)
        left = draws.matrix(rows(out), 8)
        up, down = draws.matrix(out // rows(out), 2), draws.matrix(2, into // 8)
        stem = f"base_model.model.{original}"
        tensors |= {
            f"{stem}.lokr_w1": left,
            f"{stem}.lokr_w2_a": up,
            f"{stem}.lokr_w2_b": down,
        }
        merged[name] = plus(6 / 2 * torch.kron(left, up @ down))
    write_folder(folder, tensors, {"peft_type": "LOKR", "r": 2, "alpha": 6})
    return merged


def peft_loha(folder: Path, draws: Draws) -> Merged:
    tensors, merged = hadamard("base_model.model.", draws, rank=2)
    write_folder(folder, tensors, {"peft_type": "LOHA", "r": 2, "alpha": 3})
    return {name: plus(3 / 2 * delta) for name, delta in merged.items()}


def diffusers_with_settings(file: Path, draws: Draws) -> Merged:
    tensors, merged = Tensors(), Merged()
    for name in LAYERS:
        out, into = draws.size(name)
        down, up = draws.matrix(4, into), draws.matrix(out, 4)
        tensors |= {
            f"transformer.{name}.lora_A.weight": down,
            f"transformer.{name}.lora_B.weight": up,
        }
        merged[name] = plus(8 / 4 * up @ down)
    settings = {"transformer.r": 4, "transformer.lora_alpha": 8.0, "transformer.use_dora": False}
    save_file(tensors, file, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})
    return merged


def diffusers_older(file: Path, draws: Draws) -> Merged:
    """Without settings the scale is one; both older spellings of the factors."""
    tensors, merged = Tensors(), Merged()
    for number, name in enumerate(LAYERS):
        out, into = draws.size(name)
        down, up = draws.matrix(4, into), draws.matrix(out, 4)
        joint = ".lora" if number % 2 else ".lora_linear_layer"
        tensors |= {
            f"transformer.{name}{joint}.down.weight": down,
            f"transformer.{name}{joint}.up.weight": up,
        }
        merged[name] = plus(up @ down)
    save_file(tensors, file)
    return merged


def kohya(file: Path, draws: Draws) -> Merged:
    """Underscores, an alpha and a rank of its own for each layer, some below `decoder`."""
    tensors, merged = Tensors(), Merged()
    for number, (name, original) in enumerate(LAYERS.items()):
        out, into = draws.size(name)
        rank, alpha = 2 + number, 1.0 + number
        down, up = draws.matrix(rank, into), draws.matrix(out, rank)
        spelling = (original if number % 3 else "decoder." + original).replace(".", "_")
        stem = f"lora_unet_{spelling}"
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
        merged[name] = plus(alpha / rank * up @ down)
    save_file(tensors, file)
    return merged


def comfy(file: Path, draws: Draws) -> Merged:
    """Dotted names below ComfyUI's prefix, some layers with magnitudes and some without."""
    tensors, merged = Tensors(), Merged()
    for number, (name, original) in enumerate(LAYERS.items()):
        out, into = draws.size(name)
        down, up = draws.matrix(4, into), draws.matrix(out, 4)
        stem = f"diffusion_model.decoder.{original}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        merged[name] = plus(up @ down)
        if number % 2:
            lengths = draws.lengths(name, 1)
            tensors[f"{stem}.dora_scale"] = lengths
            merged[name] = decomposed(up @ down, lengths)
    save_file(tensors, file)
    return merged


def lycoris_lokr(file: Path, draws: Draws) -> Merged:
    """Factors of both sorts, with magnitudes of the rows: as a published ACE-Step LoKr is."""
    tensors, merged = Tensors(), Merged()
    for number, (name, original) in enumerate(LAYERS.items()):
        out, into = draws.size(name)
        stem = f"lycoris_{original.replace('.', '_')}"
        left = draws.matrix(rows(out), 4)
        up, down = draws.matrix(out // rows(out), 3), draws.matrix(3, into // 4)
        lengths = draws.lengths(name, 1)
        tensors |= {
            f"{stem}.lokr_w1": left,
            f"{stem}.lokr_w2_a": up,
            f"{stem}.lokr_w2_b": down,
            f"{stem}.alpha": torch.tensor(6.0),
        }
        delta = 6 / 3 * torch.kron(left, up @ down)
        merged[name] = plus(delta)
        if number != 1:
            tensors[f"{stem}.dora_scale"] = lengths
            merged[name] = decomposed(delta, lengths)
    save_file(tensors, file, {"algo": "lokr", "format": "lycoris"})
    return merged


def lycoris_whole_factors(folder: Path, draws: Draws) -> Merged:
    """Two whole factors have no rank, and their alpha counts for nothing."""
    tensors, merged = Tensors(), Merged()
    for name, original in LAYERS.items():
        out, into = draws.size(name)
        stem = f"lycoris_{original.replace('.', '_')}"
        left = draws.matrix(rows(out), 4)
        right = draws.matrix(out // rows(out), into // 4)
        tensors |= {
            f"{stem}.lokr_w1": left,
            f"{stem}.lokr_w2": right,
            f"{stem}.alpha": torch.tensor(1e10),
        }
        merged[name] = plus(torch.kron(left, right))
    folder.mkdir()
    save_file(tensors, folder / "lokr_weights.safetensors")
    return merged


def hadamard(prefix: str, draws: Draws, rank: int) -> tuple[Tensors, Tensors]:
    tensors, deltas = Tensors(), Tensors()
    for name, original in LAYERS.items():
        out, into = draws.size(name)
        factors = {
            "hada_w1_a": draws.matrix(out, rank), "hada_w1_b": draws.matrix(rank, into),
            "hada_w2_a": draws.matrix(out, rank), "hada_w2_b": draws.matrix(rank, into),
        }  # fmt: skip
        tensors |= {f"{prefix}{original}.{part}": value for part, value in factors.items()}
        first, second = (
            factors[f"hada_w{n}_a"] @ factors[f"hada_w{n}_b"] for n in (1, 2)
        )  # fmt: skip
        deltas[name] = first * second
    return tensors, deltas


def lycoris_loha(file: Path, draws: Draws) -> Merged:
    """With magnitudes of the columns, as LyCORIS made them before it could do rows."""
    tensors, deltas = hadamard("lycoris_", draws, rank=3)
    flat = {
        f"{key.rpartition('.')[0].replace('.', '_')}.{key.rpartition('.')[2]}": value
        for key, value in tensors.items()
    }
    merged = Merged()
    for name, original in LAYERS.items():
        lengths = draws.lengths(name, 0)
        stem = f"lycoris_{original.replace('.', '_')}"
        flat |= {f"{stem}.alpha": torch.tensor(1.5), f"{stem}.dora_scale": lengths}
        merged[name] = decomposed(1.5 / 3 * deltas[name], lengths)
    save_file(flat, file)
    return merged


def write_folder(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


FORMS = (
    peft_lora,
    peft_dora,
    peft_rank_stabilised,
    peft_lokr,
    peft_loha,
    diffusers_with_settings,
    diffusers_older,
    kohya,
    comfy,
    lycoris_lokr,
    lycoris_whole_factors,
    lycoris_loha,
)


@pytest.fixture(scope="module")
def adapted(base_folder: Path) -> AceStepHandler:
    handler = AceStepHandler()
    handler.load(str(base_folder), resolve("cpu"))
    return handler


@pytest.fixture
def fresh(adapted: AceStepHandler) -> Iterator[AceStepHandler]:
    yield adapted
    adapted.unload_lora()


def latents(handler: AceStepHandler) -> torch.Tensor:
    request = Request("a hum", (3,), duration=0.5, steps=1, guidance_scale=1.0)
    return handler.generate(request).tensors["pred_latents"]


def transformer_of(handler: AceStepHandler) -> Any:
    assert handler.pipeline is not None
    return handler.pipeline.transformer


def with_merged(handler: AceStepHandler, merged: Merged, scale: float) -> torch.Tensor:
    """Latents of the plain transformer with other weights, which go back afterwards."""
    transformer = transformer_of(handler)
    before = {name: transformer.get_submodule(name).weight.data.clone() for name in merged}
    for name, merge in merged.items():
        transformer.get_submodule(name).weight.data.copy_(merge(before[name], scale))
    assert handler.pipeline is not None
    handler.pipeline.forget()
    made = latents(handler)
    for name, weight in before.items():
        transformer.get_submodule(name).weight.data.copy_(weight)
    handler.pipeline.forget()
    return made


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_merged_weights(
    fresh: AceStepHandler, tmp_path: Path, form: Callable[[Path, Draws], Merged]
) -> None:
    transformer = transformer_of(fresh)
    merged = form(tmp_path / "adapter.safetensors", Draws(transformer))
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    plain = latents(fresh)
    expected = {scale: with_merged(fresh, merged, scale) for scale in (1.0, 0.4)}
    fresh.load_lora(tmp_path / "adapter.safetensors")
    full = latents(fresh)
    torch.testing.assert_close(full, expected[1.0], rtol=0, atol=1e-5)
    assert (full - plain).abs().max() > 1e-2
    fresh.set_lora_scale(0.4)
    torch.testing.assert_close(latents(fresh), expected[0.4], rtol=0, atol=1e-5)
    assert (expected[0.4] - full).abs().max() > 1e-3
    for switch_off in (lambda: fresh.set_lora_scale(0.0), fresh.disable_lora):
        switch_off()
        torch.testing.assert_close(latents(fresh), plain, rtol=0, atol=1e-6)
        fresh.set_lora_scale(1.0)
        assert torch.equal(latents(fresh), full)
    fresh.unload_lora()
    after = transformer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(latents(fresh), plain)
    assert not any(isinstance(layer, AdaptedLinear) for layer in transformer.modules())


def test_weights_in_half_precision_stay_so(tmp_path: Path, base_folder: Path) -> None:
    handler = AceStepHandler()
    handler.load(str(base_folder), resolve("cpu", dtype="bfloat16"))
    lycoris_lokr(tmp_path / "x.safetensors", Draws(transformer_of(handler)))
    plain = latents(handler)
    handler.load_lora(tmp_path / "x.safetensors")
    layer = transformer_of(handler).condition_embedder
    assert isinstance(layer, AdaptedLinear)
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.bfloat16}
    assert (latents(handler) - plain).abs().max() > 1e-2


def edited(file: Path, edit: Callable[[Tensors], Tensors]) -> None:
    save_file(edit(load_file(file)), file)


def first(tensors: Tensors, part: str) -> str:
    return next(key for key in tensors if part in key)


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k != first(tensors, part)}


def replaced(part: str, value: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {first(tensors, part): torch.as_tensor(value)}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def twice(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: (
        tensors | {k: v.clone() for k, v in renamed(old, new)(tensors).items() if k not in tensors}
    )


def added(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("form", "edit", "message"),
    [
        (kohya, lambda t: {"conv.weight": torch.zeros(1)}, "holds no LoRA weights; it has 'conv"),
        (kohya, lambda t: {"a.alpha": torch.ones(1)}, "holds no LoRA weights; it has 'a.alpha'"),
        (kohya, added("lora_unet_layers_0_mlp_up_proj.diff_b"), "diff_b', which is none of LoRA"),
        (kohya, without("lora_up"), "has only alpha, down; expected the whole of lora_A and"),
        (kohya, renamed("layers_1", "layers_7"), "has no layer 'layers_7_"),
        (kohya, renamed("lora_unet_", "lora_te1_text_model_"), "has no layer"),
        (kohya, replaced("0_self_attn_q_proj.lora_down", torch.zeros(2, 9)), "of another width"),
        (kohya, replaced("lora_up", torch.zeros(64, 9)), "have ranks . and 9, expected one rank"),
        (kohya, replaced("lora_down", torch.zeros(2, 64, 1)), r"shape \(2, 64, 1\), expected a m"),
        (kohya, replaced("lora_up", float("nan")), "has a up that is not finite"),
        (kohya, replaced("alpha", [1.0, 2.0]), "the alpha of .* is not one number"),
        (comfy, renamed("condition_embedder", "proj_in_conv"), "'proj_in_conv', a Conv1d; only"),
        (comfy, replaced("dora_scale", torch.ones(3, 1)), r"magnitude of .* has shape \(3, 1\)"),
        (
            comfy,
            twice("decoder.layers.0.self_attn.q_proj", "layers.0.self_attn.to_q"),
            "two updates",
        ),
        (lycoris_lokr, without("lokr_w1"), "expected lokr_w1, or lokr_w1_a and lokr_w1_b"),
        (lycoris_lokr, without("lokr_w2_b"), "expected lokr_w2, or lokr_w2_a and lokr_w2_b"),
        (lycoris_lokr, added("lycoris_condition_embedder.lokr_t2"), "lokr_t2', which is none of"),
        (lycoris_lokr, replaced("lokr_w1", torch.zeros(3, 4)), "of another width"),
        (lycoris_loha, without("hada_w2_b"), "expected the whole of"),
    ],
)
def test_misfits_are_one_line(
    fresh: AceStepHandler, tmp_path: Path, form: Any, edit: Any, message: str
) -> None:
    file = tmp_path / "odd.safetensors"
    form(file, Draws(transformer_of(fresh)))
    edited(file, edit)
    before = list(transformer_of(fresh).state_dict())
    with pytest.raises(CheckpointError, match=message) as caught:
        fresh.load_lora(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert list(transformer_of(fresh).state_dict()) == before


@pytest.mark.parametrize("worn", [peft_lora, peft_dora, lycoris_lokr])
def test_an_adapter_stays_on_where_the_next_does_not_fit(
    fresh: AceStepHandler, tmp_path: Path, worn: Any
) -> None:
    draws = Draws(transformer_of(fresh))
    worn(tmp_path / "worn.safetensors", draws)
    kohya(tmp_path / "odd.safetensors", draws)
    kohya(tmp_path / "next.safetensors", draws)
    edited(tmp_path / "odd.safetensors", renamed("layers_1", "layers_7"))
    fresh.load_lora(tmp_path / "next.safetensors")
    expected = latents(fresh)
    fresh.load_lora(tmp_path / "worn.safetensors", 0.4)
    before = latents(fresh)
    with pytest.raises(CheckpointError, match="has no layer"):
        fresh.load_lora(tmp_path / "odd.safetensors")
    assert torch.equal(latents(fresh), before)
    fresh.load_lora(tmp_path / "next.safetensors")
    assert torch.equal(latents(fresh), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of kind IA3; expected LoRA, DoRA, LoKr or LoHa"),
        ({"modules_to_save": ["norm_out"]}, r"ask for modules_to_save=\['norm_out'\]"),
        ({"bias": "all"}, "ask for bias='all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "ask for init_lora_weights='pissa_niter_4'"),
        ({"r": "four"}, "say r='four', expected a number"),
        ({"alpha_pattern": [1]}, "say alpha_pattern="),
        ({"rank_pattern": {"(": 1}, "alpha_pattern": {"(": 1}}, "is no pattern"),
    ],
)
def test_settings_that_ask_for_more(
    fresh: AceStepHandler, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "adapter"
    peft_lora(folder, Draws(transformer_of(fresh)))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    with pytest.raises(CheckpointError, match=message) as caught:
        fresh.load_lora(folder)
    assert "\n" not in str(caught.value)


def test_folders_without_an_adapter(fresh: AceStepHandler, tmp_path: Path) -> None:
    from acestep.errors import RequestError

    with pytest.raises(RequestError, match="no safetensors file, expected adapter_model"):
        fresh.load_lora(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a pickle, which is not opened"):
        fresh.load_lora(tmp_path)
    (tmp_path / "one.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="not readable as an adapter"):
        fresh.load_lora(tmp_path)


def test_peft_writes_what_is_read(fresh: AceStepHandler, tmp_path: Path) -> None:
    """A folder that peft itself wrote, of each kind that it knows."""
    import peft

    names = [name for name in LAYERS if name.startswith("layers")]
    for config in (
        peft.LoraConfig(r=3, lora_alpha=5, target_modules=names, use_dora=True),
        peft.LoKrConfig(r=3, alpha=5, target_modules=names, decompose_both=True),
        peft.LoHaConfig(r=3, alpha=5, target_modules=names),
    ):
        plain = latents(fresh)
        handler = AceStepHandler()
        handler.load(str(transformer_folder(fresh)), resolve("cpu"))
        model = peft.get_peft_model(transformer_of(handler), config)
        generator = torch.Generator().manual_seed(1)
        for name, value in model.named_parameters():
            if "lora_B" in name or "lokr_w" in name or "hada_w" in name:
                value.data = 0.3 * torch.randn(value.shape, generator=generator)
        folder = tmp_path / type(config).__name__
        model.save_pretrained(folder)
        assert handler.pipeline is not None
        handler.pipeline.forget()
        expected = latents(handler)
        fresh.load_lora(folder)
        torch.testing.assert_close(latents(fresh), expected, rtol=0, atol=1e-5)
        assert (expected - plain).abs().max() > 1e-2
        fresh.unload_lora()


def transformer_folder(handler: AceStepHandler) -> Path:
    assert handler.checkpoint is not None
    return handler.checkpoint.path
