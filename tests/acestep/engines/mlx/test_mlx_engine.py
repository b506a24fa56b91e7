"""Tests of the MLX engine: the torch engine's numbers, part by part, and what only it does."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mlx_sides import BOUND, encoded, load, velocities, worst

from acestep.corrections.weight_norm import old_weight_norm
from acestep.device import resolve
from acestep.engines.protocol import Engine
from acestep.errors import GenerationError, RequestError

mx = pytest.importorskip("mlx.core", reason="there is no MLX for this system")
arrays = pytest.importorskip("acestep.engines.mlx.arrays")
attention = pytest.importorskip("acestep.engines.mlx.attention")
building = pytest.importorskip("acestep.engines.mlx.building")
codec = pytest.importorskip("acestep.engines.mlx.codec")
place = pytest.importorskip("acestep.engines.mlx.place")
quantised = pytest.importorskip("acestep.engines.mlx.quantised")
wave = pytest.importorskip("acestep.engines.mlx.wave")


@pytest.mark.parametrize("name", ["base", "xl-turbo"])
def test_the_same_numbers(engines: Callable[[str], Any], state: torch.Tensor, name: str) -> None:
    """Condition, timbre, velocities, codes, latents of codes, audio and its latents."""
    engine, other = engines(name)
    assert engine.traits == other.traits
    for answer in (
        lambda e: e.host(encoded(e)),
        lambda e: e.host(e.encode_timbre(3 * state[0].repeat(3, 1))),
        lambda e: e.latents_of([0, 63999, 777, 40000]),
        lambda e: e.encode(torch.randn(2, 3 * 1920, generator=torch.Generator().manual_seed(1))),
        lambda e: e.decode(e.array(state[:, :5].repeat(2, 1, 1)), 3 * 1920 + 5),
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


def test_chunks_change_nothing() -> None:
    """Of another VAE, one of whose strides is odd; each chunk is told, and may stop the rest."""
    from diffusers.models import AutoencoderOobleck

    torch.manual_seed(0)
    with old_weight_norm():
        vae = AutoencoderOobleck(8, [2, 3], [1, 2], 8, 4, 2, 48000).eval()
    for name, value in vae.named_parameters():
        if not name.endswith("weight_g"):
            value.data = torch.randn_like(value) * 0.3
    weights = {name: arrays.from_torch(value) for name, value in vae.state_dict().items()}
    told: list[float] = []
    latents, audio = torch.randn(2, 90, 4), torch.randn(2, 90 * 6)
    for ways in (wave.Ways(), wave.Ways(by_taps=True)):
        made = codec.Codec(building.vae(vae, weights, ways), vae, resolve("cpu"), mx.float32)
        with torch.inference_mode():
            whole = vae.decode(latents.mT).sample
            heard = vae.encode(audio[None]).latent_dist.mean[0].mT
        for core in (160, 30):
            told.clear()
            made.core = made.encoder_core = core
            assert worst(made.decode(arrays.from_torch(latents), told.append), whole) < 1e-5
            assert worst(made.encode(audio), heard) < 1e-5
        assert told == pytest.approx([1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1])

    peaks = []
    for frames in (300, 2400):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        song = arrays.from_torch(torch.zeros(1, frames, 4))
        made.decode(song)
        peaks.append(mx.get_peak_memory() - before - song.nbytes)
    # Of a song of eight times the length, which is not taken in pieces; what is given back a moment
    # later on a busy machine is no more than a chunk.
    assert peaks[1] < 1.5 * peaks[0]

    def stop(done: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        made.decode(arrays.from_torch(latents), stop)


@pytest.mark.soak
def test_compiled(engines: Callable[[str], Any], state: torch.Tensor) -> None:
    """A minute of a C++ compiler."""
    exact = velocities(engines("base")[1], state)
    fused = load("base", "mlx", compile_model=True)
    assert worst(velocities(fused, state), exact) < BOUND


def test_in_few_bits(engines: Callable[[str], Any], state: torch.Tensor) -> None:
    """Eight lose little, four more; and what was whole in the files is not kept beside it."""
    exact = velocities(engines("base")[1], state)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    eight = load("base", "mlx", quantization="int8")
    held, most = (seen() - before for seen in (mx.get_active_memory, mx.get_peak_memory))
    assert most < 1.1 * held
    lost = [
        worst(velocities(each, state), exact)
        for each in (eight, load("base", "mlx", quantization="int4"))
    ]
    assert 1e-4 < lost[0] < 0.1 < lost[1] < 3


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.soak)])
def test_half_the_bits(engines: Callable[[str], Any], state: torch.Tensor, dtype: str) -> None:
    """Further off than in PyTorch by half at most."""
    exact = velocities(engines("base")[0], state)
    lost = [
        worst(velocities(load("base", kind, dtype=dtype), state), exact)
        for kind in ("torch", "mlx")
    ]
    assert lost[1] < 1.5 * lost[0]


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


def test_it_starts_before_torch() -> None:
    """In a process of its own; in this one PyTorch was first."""
    code = (
        "import mlx.core as mx; a = mx.ones((64, 64)); mx.eval(a @ a); import torch; "
        "b = torch.ones(64, 64); print(float((b @ b).sum()) == float((a @ a).sum()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "True\n", ran.stderr


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
