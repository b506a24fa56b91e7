"""Planted defects: each small mistake in MLX's modules moves the numbers that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from mlx_sides import BOUND, encoded, velocities, worst

mx = pytest.importorskip("mlx.core", reason="there is no MLX for this system")
attention = pytest.importorskip("acestep.engines.mlx.attention")
encoders = pytest.importorskip("acestep.engines.mlx.encoders")
layers = pytest.importorskip("acestep.engines.mlx.layers")
tokens = pytest.importorskip("acestep.engines.mlx.tokens")
transformer = pytest.importorskip("acestep.engines.mlx.transformer")
wave = pytest.importorskip("acestep.engines.mlx.wave")

Plant = Callable[[pytest.MonkeyPatch, Any], None]
AUDIO = torch.linspace(0, 90, 2 * 2 * 1920).sin().reshape(2, -1)


def steps(engine: Any, state: torch.Tensor) -> torch.Tensor:
    return velocities(engine, state)


def words(engine: Any, state: torch.Tensor) -> torch.Tensor:
    with engine.working():
        return engine.host(encoded(engine))


def sound(engine: Any, state: torch.Tensor) -> torch.Tensor:
    with engine.working():
        return engine.decode(engine.array(state[:, :3]), 3 * 1920)


def heard(engine: Any, state: torch.Tensor) -> torch.Tensor:
    with engine.working():
        return engine.encode(AUDIO)


def codes(engine: Any, state: torch.Tensor) -> torch.Tensor:
    with engine.working():
        return torch.tensor(engine.codes_of(state[0]), dtype=torch.float32)


def restored(engine: Any, state: torch.Tensor) -> torch.Tensor:
    with engine.working():
        return engine.latents_of([7, 4000, 63999])


def no_norm(patch: pytest.MonkeyPatch, _: Any) -> None:
    patch.setattr(
        attention.Attention,
        "queries",
        lambda self, hidden: attention._split(self.to_q(hidden), self.heads),
    )


def shifted_table(patch: pytest.MonkeyPatch, _: Any) -> None:
    make = attention.Positions.make

    def shifted(*given: Any) -> Any:
        made = make(*given)
        return replace(made, sines=mx.roll(made.sines, 1, axis=0))

    patch.setattr(attention.Positions, "make", shifted)


def turned_in_pairs(patch: pytest.MonkeyPatch, _: Any) -> None:
    def turn(self: Any, heads: Any) -> Any:
        pairs = mx.unflatten(heads, -1, (-1, 2))
        swapped = pairs[..., ::-1].flatten(-2)
        return heads * self.cosines + swapped * self.sines

    patch.setattr(attention.Positions, "turn", turn)


def dropped_bias(patch: pytest.MonkeyPatch, engine: Any) -> None:
    last = engine.parts.transformer.proj_out
    patch.setitem(last, "bias", 0 * last["bias"])


def one_time(patch: pytest.MonkeyPatch, engine: Any) -> None:
    second = engine.parts.transformer.time_embed_r.time_proj
    patch.setitem(second, "weight", 0 * second["weight"])


def sines_first(patch: pytest.MonkeyPatch, _: Any) -> None:
    right = transformer.waves
    patch.setattr(transformer, "waves", lambda times: right(times).roll(128, 1))


def wrong_gate(patch: pytest.MonkeyPatch, _: Any) -> None:
    right = transformer.Layer.heard

    def wrong(self: Any, hidden: Any, times: Any, positions: Any) -> Any:
        made, (shift, scale, _) = right(self, hidden, times, positions)
        return made, [shift, scale, (self.scale_shift_table[0] + times)[2]]

    patch.setattr(transformer.Layer, "heard", wrong)


def no_window(patch: pytest.MonkeyPatch, _: Any) -> None:
    patch.setattr(
        attention, "attend_within", lambda q, k, v, scale, _: attention.attend(q, k, v, scale)
    )


def window_too_wide(patch: pytest.MonkeyPatch, _: Any) -> None:
    right = attention.attend_within
    patch.setattr(attention, "attend_within", lambda *given: right(*given[:-1], given[-1] + 1))


def looking_ahead(patch: pytest.MonkeyPatch, engine: Any) -> None:
    for layer in engine.parts.text_encoder.layers:
        patch.setattr(layer, "causal", False)


def deaf_to_the_token(patch: pytest.MonkeyPatch, engine: Any) -> None:
    patch.setattr(engine.parts.condition_encoder.timbre_encoder, "hears_token", False)


def levels_backwards(patch: pytest.MonkeyPatch, engine: Any) -> None:
    quantiser = engine.parts.audio_tokenizer.quantizer
    patch.setitem(quantiser, "_basis", quantiser["_basis"][::-1])


def halves_swapped(patch: pytest.MonkeyPatch, engine: Any) -> None:
    widen = engine.parts.codec.vae.decoder.block[0].conv_t1
    patch.setitem(widen, "weight", mx.concatenate(mx.split(widen["weight"], 2)[::-1]))


def not_squared(patch: pytest.MonkeyPatch, _: Any) -> None:
    patch.setattr(
        wave.Snake,
        "__call__",
        lambda self, signal: signal + self.size * mx.sin(self.rate * signal),
    )


def spread_too_little(patch: pytest.MonkeyPatch, engine: Any) -> None:
    for block in engine.parts.codec.vae.encoder.block:
        patch.setattr(block.res_unit2.conv1, "dilation", 1)


def a_seam(patch: pytest.MonkeyPatch, engine: Any) -> None:
    patch.setattr(engine.parts.codec, "core", 1)
    patch.setattr(engine.parts.codec, "halo", 0)


DEFECTS: list[tuple[str, Plant, Callable[[Any, torch.Tensor], torch.Tensor]]] = [
    ("base", no_norm, steps),
    ("base", shifted_table, steps),
    ("base", turned_in_pairs, steps),
    ("base", dropped_bias, steps),
    ("base", one_time, steps),
    ("base", sines_first, steps),
    ("base", wrong_gate, steps),
    ("base", no_window, words),
    ("base", window_too_wide, words),
    ("base", looking_ahead, words),
    ("xl-turbo", deaf_to_the_token, words),
    ("base", levels_backwards, codes),
    ("base", levels_backwards, restored),
    ("base", halves_swapped, sound),
    ("base", not_squared, sound),
    ("base", a_seam, sound),
    ("base", spread_too_little, heard),
]


@pytest.fixture(scope="module")
def right(engines: Callable[[str], Any], state: torch.Tensor) -> Callable[..., torch.Tensor]:
    """What PyTorch answers to a question."""
    return lru_cache(lambda name, ask: ask(engines(name)[0], state))


@pytest.mark.parametrize(
    ("name", "plant", "ask"),
    DEFECTS,
    ids=[f"{plant.__name__}-{ask.__name__}" for _, plant, ask in DEFECTS],
)
def test_it_is_caught(
    engines: Callable[[str], Any],
    right: Callable[..., torch.Tensor],
    state: torch.Tensor,
    name: str,
    plant: Plant,
    ask: Callable[[Any, torch.Tensor], torch.Tensor],
) -> None:
    engine = engines(name)[1]
    with pytest.MonkeyPatch.context() as patch:
        # What was kept was made without the defect.
        patch.setattr(engine, "_silent_timbre", None)
        plant(patch, engine)
        assert worst(ask(engine, state), right(name, ask)) > 10 * BOUND
    # And it was the defect.
    assert worst(ask(engine, state), right(name, ask)) < BOUND
