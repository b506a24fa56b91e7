"""MLX's engine: every part of it at work, and what it is held against.

The other cases ask the engine for songs; here are what no song of the built-in checkpoint needs, and
what only this engine has. On other targets these cases are absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.entrypoints import covers
from conformance.suite.support import Api, generate, initialised, song, tone, transformer_weights
from conformance.targets import Target
from conformance.tree import Absent

CODES = "".join(f"<|audio_code_{n}|>" for n in (5, 900, 63))


@pytest.fixture
def mlx(target: Target) -> Any:
    """MLX's core, where the target computes with it."""
    if target.engine != "mlx":
        raise Absent("of MLX's engine, which has columns of its own")
    import mlx.core

    return mlx.core


@covers(
    "A1",
    "A3",
    "checkpoint.pretrained:empty_pretrained",
    "checkpoint.sizes:held_gib",
    "engines.loading:check_room",
    "device.budget:chunk_frames",
    "device.budget:song_gib",
    "device.budget:step_gib",
    "device.budget:wave_gib",
    *(f"engines.mlx.arrays:{name}" for name in ("dtype_of", "from_torch", "to_torch")),
    "engines.mlx.building:*",
    "engines.mlx.codec:Codec*",
    "engines.mlx.encoders:*",
    "engines.mlx.engine:*",
    "engines.mlx.layers:*",
    "engines.mlx.loading:*",
    "engines.mlx.place:*",
    "engines.mlx.tokens:*",
    "engines.mlx.transformer:Layer",
    "engines.mlx.transformer:Layer.heard",
    "engines.mlx.transformer:TimeEmbedding",
    "engines.mlx.transformer:Transformer*",
    "engines.mlx.transformer:waves",
    "engines.mlx.wave:*",
    *(f"engines.mlx.attention:Attention{name}" for name in ("", ".keys", ".out", ".over_itself")),
    *(f"engines.mlx.attention:Attention.{name}" for name in ("queries", "values")),
    "engines.mlx.attention:Positions.*",
    "engines.mlx.attention:attend",
)
def test_all_that_a_song_may_ask_for(api: Api, target: Target, mlx: Any) -> None:
    """Words, codes and audio to codes, lyrics on the song, guidance; then it is gone. A reference,
    of which half a minute is heard, takes minutes on a host."""
    made = initialised(api, target.device, dtype="float32")
    result = made.generate_music(
        "piano", lyrics="[verse]\nhello world", audio_code_string=CODES, audio_duration=0.6,
        inference_steps=2, seed=9, use_random_seed=False,
    )  # fmt: skip
    assert result["success"], result["error"]
    inputs = api.get("alignment.service:song_inputs")(result["extra_outputs"])
    judged = made.get_lyric_score(**inputs, custom_layers_config={0: [0, 1]})
    assert judged["success"], judged["error"]
    assert made.codes_of(tone(0.24))
    song(generate(api, made, task_type="repaint", src_audio=tone(0.5), repainting_start=0.1))
    engine = made.engine
    with engine.working():
        encoded = engine.encode_words([5, 6], [7, 8])[0]
        nothing = engine.unconditional(encoded)
        assert nothing.shape == encoded.shape
        assert engine.precise(nothing).dtype == mlx.float32
    assert engine.parts.audio_tokenizer.quantizer.size == engine.traits.codes
    before = mlx.get_active_memory()
    made.unload()
    assert mlx.get_active_memory() < before


@covers("A1", "engines.mlx.codec:Codec.decode", "engines.mlx.codec:Codec.encode")
def test_chunks_change_nothing(api: Api, target: Target, handler: Any, mlx: Any) -> None:
    """Decoded and encoded in few frames at a time or in one piece; and memory stays a chunk's."""
    engine = handler.engine
    codec, generator = engine.parts.codec, torch.Generator().manual_seed(2)
    latents = torch.randn(1, 20, engine.traits.channels, generator=generator)
    bound = 1e-5 if codec.dtype == mlx.float32 else 5e-2
    kept = codec.core, codec.encoder_core
    made, heard = [], []
    try:
        for core in (4, 64):
            codec.core = codec.encoder_core = core
            with engine.working():
                made.append(codec.decode(engine.array(latents)))
                heard.append(codec.encode(tone(0.4)))
    finally:
        codec.core, codec.encoder_core = kept
    for few, whole in (made, heard):
        assert few.shape == whole.shape
        largest = max(1.0, float(whole.abs().max()))
        assert (few - whole).abs().max() <= bound * largest


@covers(
    "A1",
    "engines.mlx.adapters:*",
    "engines.mlx.attention:attend_within",
    "engines.mlx.quantised:bits_of",
    "engines.mlx.quantised:in_stack",
    "engines.mlx.quantised:quantise",
    "engines.mlx.transformer:SongInputs.*",
)
def test_what_few_songs_need(api: Api, target: Target, mlx: Any, tmp_path: Path) -> None:
    """Long songs' windows, weights of few bits, and an adapter that comes and goes."""
    attend = api.get("engines.mlx.attention:attend")
    within = api.get("engines.mlx.attention:attend_within")
    query = mlx.random.normal((1, 4, 500, 8))
    key, value = mlx.random.normal((1, 2, 500, 8)), mlx.random.normal((1, 2, 500, 8))
    whole, near = attend(query, key, value, 0.3), within(query, key, value, 0.3, 30)
    assert near.shape == whole.shape
    alone = attend(query[:, :, :1], key[:, :, :31], value[:, :, :31], 0.3)
    assert mlx.abs(near[:, :, :1] - alone).max() < 1e-5
    few = initialised(api, target.device, quantization="8", dtype="float32")
    few.unload()
    made = initialised(api, target.device, dtype="float32")
    before = transformer_weights(made)
    width = before["layers.0.self_attn.to_q.weight"].shape
    update = {"lora_A.weight": torch.ones(2, width[1]), "lora_B.weight": torch.ones(width[0], 2)}
    from safetensors.torch import save_file

    stem = "diffusion_model.decoder.layers.0.self_attn.q_proj."
    save_file({stem + name: 0.1 * v for name, v in update.items()}, tmp_path / "a.safetensors")
    made.load_lora(tmp_path / "a.safetensors", 0.5)
    changed = transformer_weights(made)["layers.0.self_attn.to_q.weight"]
    assert not torch.equal(changed, before["layers.0.self_attn.to_q.weight"])
    made.unload_lora()
    after = transformer_weights(made)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    shared = api.get("engines.mlx.transformer:SongInputs")
    engine = made.engine
    with engine.working():
        encoded = engine.encode_words([5], [7])[0]
        inputs = engine.parts.transformer.song(
            encoded, mlx.zeros((1, 8, engine.traits.context_width))
        )
        again = shared.of(inputs.arrays())
        assert len(again.keys) == len(inputs.keys)
    made.unload()


@covers(
    "A1",
    "lm.mlx_weights:make_small",
    "lm.mlx_weights:save",
    "lm.mlx_weights:saved_small",
    "checkpoint.small:Hollow",
    "engines.mlx.arrays:as_stored",
    "engines.mlx.quantised:make_room",
    "engines.mlx.quantised:packed",
)
def test_models_in_few_bits(
    api: Api, target: Target, mlx: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made small by the command, found by their folders; one writes, and one sounds."""
    main = api.get("acestep_v15_pipeline:main")
    assert main(["download", "demo", "--quantize", "4", "--to", str(tmp_path)]) == 0
    folder, checkpoint = map(Path, capsys.readouterr().out.split())
    assert folder.parent == checkpoint.parent == tmp_path
    few = api.get("handler:AceStepHandler")()
    message, ok = few.initialize_service(
        config_path=str(checkpoint), device=target.device, dtype="float32"
    )
    assert ok, message
    song(generate(api, few))
    few.unload()
    made = api.get("llm_inference:LLMHandler")()
    message, ok = made.initialize(lm_model_path=str(folder), device=target.device)
    assert ok, message
    made.caption_lines, made.line_length = 2, 12
    planned = made.generate_with_stop_condition("piano", "", "llm_dit", target_duration=1)
    assert planned["success"], planned["error"]
    made.unload()
