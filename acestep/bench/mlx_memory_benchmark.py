"""MLX's own count of memory for a song at turbo's size, beside what `acestep.device.budget` predicts.

Random weights; each part that peaks is run once: a step of the transformer, a chunk of decoding.
Run by hand, where MLX is quick:
`python -m acestep.bench.mlx_memory_benchmark --device cuda --seconds 600 --bits 8`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from acestep.console.terminal import result
from acestep.device import budget, resolve
from acestep.engines.mlx.attention import Shape
from acestep.engines.mlx.place import Place
from acestep.engines.mlx.quantised import quantise
from acestep.engines.mlx.transformer import Transformer, TransformerShape
from acestep.engines.mlx.wave import Vae, VaeShape

_STEPS = (1.0, 0.5)
_WINDOW = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a line of JSON for each part: MiB that MLX counted, and that were said."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=None)
    parser.add_argument("--layers", type=int, default=budget.MUSIC["turbo"].layers)
    parser.add_argument("--frames", type=int, default=160, help="of a chunk of decoding")
    arguments = parser.parse_args(argv)
    place = Place(resolve(arguments.device, engine="mlx"))
    with place.working():
        _tell("step", *_step(arguments.seconds, arguments.bits, arguments.layers))
        _tell("chunk", *_chunk(arguments.frames, place))
    return 0


def _step(seconds: float, bits: int | None, layers: int) -> tuple[float, float]:
    stack = budget.MUSIC["turbo"]
    # Layers with a window and without one take turns.
    windows = [None if number % 2 else _WINDOW for number in range(layers)]
    shape = TransformerShape(
        stack.width, stack.inner, Shape(stack.heads, stack.kv_heads, 128, 1e-6), windows, 1e6,
        stack.width, 64, 128, 2,
    )  # fmt: skip
    model = _in_half(Transformer(shape))
    if bits is not None:
        quantise(model, bits)
    mx.eval(model.parameters())
    tokens = int(seconds * budget.TOKENS_A_SECOND)
    given = mx.zeros((1, 600, stack.width)), mx.zeros((1, 2 * tokens, 128))
    latents = mx.random.normal((1, 2 * tokens, 64))
    mx.eval(*given, latents)
    before = _reset()
    song = model.song(*given)
    plain, times = model.times(_STEPS)
    mx.eval(song.keys, song.values, song.context, plain, times)
    mx.eval(model(latents, song, plain[0], times[0]))
    measured = mx.get_peak_memory() - before
    kept = layers / stack.layers
    known = budget.Stack(
        max(1, round(stack.layers * kept)), stack.width, stack.inner, stack.heads, stack.kv_heads, 2
    )
    return measured / 2**20, budget.step_gib(seconds, 1, known) * 1024


def _chunk(frames: int, place: Place) -> tuple[float, float]:
    strides, multiples = [2, 4, 4, 6, 10], [1, 2, 4, 8, 16]
    vae = Vae(VaeShape(128, strides, multiples, 128, 64, 2), place.ways(compiles=False))
    mx.eval(vae.parameters())
    latents = mx.random.normal((1, frames, 64))
    mx.eval(latents)
    before = _reset()
    mx.eval(vae.decoder(latents))
    return (mx.get_peak_memory() - before) / 2**20, budget.wave_gib(frames) * 1024


def _in_half(model: Any) -> Any:
    model.update(tree_map(lambda value: value.astype(mx.bfloat16), model.parameters()))
    return model


def _reset() -> int:
    mx.clear_cache()
    mx.reset_peak_memory()
    return int(mx.get_active_memory())


def _tell(part: str, measured: float, predicted: float) -> None:
    figures = {"measured_mib": round(measured, 1), "predicted_mib": round(predicted, 1)}
    result(json.dumps({"part": part, **figures}))


if __name__ == "__main__":
    raise SystemExit(main())
