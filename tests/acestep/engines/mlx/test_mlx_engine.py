"""Tests of the MLX engine: the torch engine's numbers, part by part, and what only it does."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mlx_sides import BOUND, encoded, load, velocities, worst

from acestep.device import resolve
from acestep.engines.protocol import Engine
from acestep.errors import GenerationError, RequestError

mx = pytest.importorskip("mlx.core", reason="there is no MLX for this system")
attention = pytest.importorskip("acestep.engines.mlx.attention")
place = pytest.importorskip("acestep.engines.mlx.place")
quantised = pytest.importorskip("acestep.engines.mlx.quantised")


@pytest.mark.parametrize("name", ["base", "xl-turbo"])
def test_the_same_numbers(engines: Callable[[str], Any], state: torch.Tensor, name: str) -> None:
    """Condition, timbre, velocities, codes, latents of codes, audio and its latents."""
    engine, other = engines(name)
    assert engine.traits == other.traits
    for answer in (
        lambda e: e.host(encoded(e)),
        lambda e: e.host(e.encode_timbre(3 * state[0].repeat(3, 1))),
        lambda e: e.latents_of([0, 63999, 777, 40000]),
        lambda e: e.encode(torch.randn(2, 7 * 1920, generator=torch.Generator().manual_seed(1))),
        lambda e: e.decode(e.array(state.repeat(2, 1, 1)), 11 * 1920 + 5),
    ):
        with engine.working(), other.working():
            assert worst(answer(engine), answer(other)) < BOUND
    assert worst(velocities(engine, state), velocities(other, state)) < BOUND
    with engine.working(), other.working():
        assert engine.codes_of(state[0]) == other.codes_of(state[0])


def test_where_lyrics_look(engines: Callable[[str], Any], state: torch.Tensor) -> None:
    given = {
        "hidden_states": state,
        "timestep": torch.tensor([0.125]),
        "context_latents": torch.ones(1, 31, 16),
    }
    engine, other = engines("base")
    heads, tokens = {0: [1], 1: [0, 1]}, slice(4, 20)
    found = []
    for each in (engine, other):
        with each.working():
            given["encoder_hidden_states"] = each.host(encoded(each))
            found.append(each.cross_attention(given, heads, tokens))
    assert found[1].shape == (1, 3, 16, 16)
    assert worst(*found) < 1e-6
    with other.working(), pytest.raises(RequestError, match="lyric head 0:99 does not exist"):
        other.cross_attention(given, {0: [99]}, tokens)


@pytest.mark.parametrize("tokens", [130, 400, 1200])
def test_a_window_is_one_at_every_length(tokens: int) -> None:
    """By a mask and block by block; below a window there is none."""
    draw = mx.random.key(0)
    query = mx.random.normal((2, 4, tokens, 8), key=draw)
    key, value = query[:, :2] * 0.5, query[:, 2:] + 1
    found = attention.attend_within(query, key, value, 0.3, 40)
    scores = (query * 0.3) @ mx.repeat(key, 2, axis=1).swapaxes(2, 3)
    at = mx.arange(tokens)
    far = mx.abs(at[:, None] - at[None]) > 40
    shares = mx.softmax(mx.where(far, -mx.inf, scores), axis=-1)
    assert mx.allclose(found, shares @ mx.repeat(value, 2, axis=1), atol=1e-5)


def test_queries_go_in_parts_where_scores_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    query = mx.random.normal((1, 2, 300, 8), key=mx.random.key(1))
    whole = attention.attend(query, query, query, 0.3)
    monkeypatch.setattr(attention, "_MOST_SCORES", 1)
    assert mx.allclose(attention.attend(query, query, query, 0.3), whole, atol=1e-6)


def test_chunks_change_nothing(engines: Callable[[str], Any], state: torch.Tensor) -> None:
    """Also that each is reported, and may stop the rest."""
    engine = engines("base")[1]
    codec, told = engine.parts.codec, []
    latents, length = engine.array(state[:, :26]), 26 * 1920
    audio = torch.sin(torch.arange(2 * length) / 50.0).reshape(2, length)
    with engine.working(), pytest.MonkeyPatch.context() as patch:
        whole, heard = engine.decode(latents, length), engine.encode(audio)
        patch.setattr(codec, "core", 7)
        patch.setattr(codec, "encoder_core", 6)
        assert worst(engine.decode(latents, length, told.append), whole) < 1e-5
        assert worst(engine.encode(audio), heard) < 1e-5
        assert told == pytest.approx([7 / 26, 14 / 26, 21 / 26, 1.0])

        def stop(done: float) -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            engine.decode(latents, length, stop)


@pytest.mark.soak
def test_compiled(engines: Callable[[str], Any], state: torch.Tensor) -> None:
    """A minute of a C++ compiler."""
    exact = velocities(engines("base")[1], state)
    fused = load("base", "mlx", compile_model=True)
    assert worst(velocities(fused, state), exact) < BOUND


def test_in_few_bits(engines: Callable[[str], Any], state: torch.Tensor) -> None:
    exact = velocities(engines("base")[1], state)
    eight, four = (load("base", "mlx", quantization=kind) for kind in ("int8", "int4"))
    lost = [worst(velocities(each, state), exact) for each in (eight, four)]
    assert 1e-4 < lost[0] < 0.1 < lost[1] < 3


def test_half_the_bits(engines: Callable[[str], Any], state: torch.Tensor) -> None:
    """Both 16-bit types are no further off than in PyTorch, by half at most."""
    exact = velocities(engines("base")[0], state)
    for dtype in ("bfloat16", "float16"):
        lost = [
            worst(velocities(load("base", kind, dtype=dtype), state), exact)
            for kind in ("torch", "mlx")
        ]
        assert lost[1] < 1.5 * lost[0]


def test_weights_in_few_bits_are_kept(engines: Callable[[str], Any], tmp_path: Any) -> None:
    small = load("base", "mlx", quantization="int4").parts.detokenizer
    quantised.save(small, tmp_path / "kept.safetensors", 4)
    other = load("base", "mlx").parts.detokenizer
    quantised.load(other, tmp_path / "kept.safetensors")
    given = mx.ones((3, small.embed_tokens["weight"].shape[1]))
    assert mx.array_equal(small(given), other(given))


def test_any_thread_may_ask(engines: Callable[[str], Any], state: torch.Tensor) -> None:
    """What one has begun another goes on with: a stream of MLX is a thread's own by default."""
    engine = engines("base")[1]
    kept: list[Any] = []

    def begin() -> None:
        with engine.working():
            kept.append(encoded(engine) * 2)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    with engine.working():
        assert torch.isfinite(engine.host(kept[0] + 1)).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"offload": "all"}, "offloading is pointless with MLX"),
        ({"use_flash_attention": True}, "flash attention is a package for PyTorch"),
        ({"quantization": "fp8"}, "fp8"),
    ],
)
def test_what_mlx_lacks_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        load("base", "mlx", **options)


def test_no_memory_is_one_line() -> None:
    made = place.Place(resolve("cpu", engine="mlx"))
    with pytest.raises(GenerationError, match="MLX ran out of memory on cpu"), made.working():
        raise RuntimeError("[malloc] Unable to allocate 4096 bytes.")
    with pytest.raises(RuntimeError, match="another"), made.working():
        raise RuntimeError("another one")


def test_it_closes_and_gives_all_memory_back() -> None:
    gc.collect()
    before = mx.get_active_memory()
    engine: Engine = load("base", "mlx")
    assert mx.get_active_memory() > before + 2**20
    engine.leave()
    engine.after_step()
    engine.close()
    assert mx.get_active_memory() <= before
