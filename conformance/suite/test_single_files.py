"""Checkpoints in single files, as ComfyUI keeps them: read, scaled and placed on the device."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.entrypoints import covers
from conformance.suite.support import (
    Api,
    generate,
    initialised,
    new_handler,
    song,
    torch_engine,
    transformer_weights,
)
from conformance.targets import Target

_BACK = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
# The built-in checkpoint's audio tokenizer has a width of its own, which this layout cannot say.
_PARTS = {"transformer": "decoder.", "condition_encoder": "encoder."}


def stored(pipeline: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an all-in-one file, without the VAE's."""
    for part, prefix in _PARTS.items():
        for name, value in getattr(pipeline, part).state_dict().items():
            if name == "silence_latent":
                continue
            key = ".".join(_BACK.get(piece, piece) for piece in name.split("."))
            key = key.replace("to_out.0", "o_proj")
            if part == "transformer":
                key = re.sub(r"^(proj_in|proj_out)_conv\.", r"\1.1.", key)
            if name != "null_condition_emb":
                key = prefix + key
            yield f"model.diffusion_model.{key}", value.cpu()
    for name, value in pipeline.text_encoder.state_dict().items():
        yield f"text_encoders.qwen3_06b.transformer.model.{name}", value.cpu()


@covers(
    "A1",
    "checkpoint.components:*",
    "checkpoint.modules:*",
    "checkpoint.original:original_modules",
    "checkpoint.single.loading:load_single",
    "checkpoint.single.loading:scaled",
)
def test_a_single_file_is_the_checkpoint_it_was_made_of(
    api: Api, target: Target, tmp_path: Path
) -> None:
    """With one weight in float8 and its scale, and the VAE in a folder beside the file."""
    from safetensors.torch import save_file

    handler = initialised(api, target.device, dtype="float32", **torch_engine(target))
    pipeline = handler.pipeline
    plain = song(generate(api, handler))
    tensors = dict(stored(pipeline))
    small = "model.diffusion_model.decoder.layers.0.mlp.up_proj."
    weight = tensors[small + "weight"]
    scale = weight.abs().max() / 448
    tensors[small + "weight"] = (weight / scale).to(torch.float8_e4m3fn)
    tensors[small + "weight_scale"] = scale
    file = tmp_path / "mine.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    rope = pipeline.text_encoder.config.rope_parameters
    told = {"is_turbo": True, "text_config": {"rope_parameters": dict(rope)}}
    (tmp_path / "mine.json").write_text(json.dumps(told))
    pipeline.tokenizer.save_pretrained(tmp_path)
    pipeline.vae.save_pretrained(tmp_path / "vae")
    silence = pipeline.condition_encoder.silence_latent.cpu().float()
    torch.save(silence.mT.contiguous(), tmp_path / "silence_latent.pt")
    made = new_handler(api)
    message, ok = made.initialize_service(None, str(file), device=target.device, dtype="float32")
    assert ok, message
    if made.pipeline is not None:
        read = made.pipeline.transformer.layers[0].mlp.up_proj.weight
        assert read.device.type == target.device
    held = transformer_weights(made)["layers.0.mlp.up_proj.weight"]
    assert torch.equal(held, tensors[small + "weight"].float() * scale)
    audio = song(generate(api, made))
    assert audio.shape == plain.shape
    # Three bits of mantissa in one weight of many change little.
    assert torch.nn.functional.cosine_similarity(audio.flatten(), plain.flatten(), 0) > 0.9
    with pytest.raises(AssertionError):
        torch.testing.assert_close(audio, plain, rtol=0, atol=0)
