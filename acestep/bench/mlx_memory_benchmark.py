"""MLX's own count of memory for a song at turbo's size, beside what `acestep.device.budget` predicts.

Random weights, in a Mac's precision: bfloat16, and the VAE in float32. Parts: a step of the
transformer, a chunk of decoding, and with `--song` a whole song by a handler, with the smallest
language model's weights beside it. What a step takes does not depend on how many there are, so one
is enough (`--steps`). Run by hand, where MLX is quick:

    python -m acestep.bench.mlx_memory_benchmark --device cuda --bits 8 --mac 16 --song

On the CPU MLX multiplies weights in few bits number by number (0.1 to 0.5 GFLOP/s on a Xeon):
`--whole` makes each weight whole before its product, a few MiB more at the peak, and BLAS does it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from acestep.bench import shapes
from acestep.console.terminal import result
from acestep.device import GIB, DevicePolicy, budget, resolve
from acestep.engines.mlx.attention import Shape
from acestep.engines.mlx.place import Place
from acestep.engines.mlx.quantised import quantise
from acestep.engines.mlx.transformer import Transformer, TransformerShape
from acestep.engines.mlx.wave import Vae, VaeShape
from acestep.handler import AceStepHandler

_STEPS = (1.0, 0.5)
_WINDOW = 128
_LANGUAGE = "acestep-5Hz-lm-0.6B"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a line of JSON for each part: MiB that MLX counted, and that were said."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=None)
    parser.add_argument("--layers", type=int, default=budget.MUSIC["turbo"].layers)
    parser.add_argument("--frames", type=int, default=160, help="of a chunk of decoding")
    parser.add_argument("--mac", type=float, help="keep to the memory of such a Mac, GB")
    parser.add_argument("--within", action="store_true", help="let MLX keep to the prediction")
    parser.add_argument("--whole", action="store_true", help="multiply whole weights")
    parser.add_argument("--song", action="store_true", help="a whole song, and no parts")
    parser.add_argument("--steps", type=int, default=1, help="of the song")
    parser.add_argument("--weights", type=Path, help="folder with the song's checkpoint, made once")
    arguments = parser.parse_args(argv)
    policy = resolve(arguments.device, engine="mlx")
    if arguments.mac:
        working = budget.working_set(arguments.mac)
        policy = dataclasses.replace(policy, total_memory=working)
    place = Place(policy)
    with _whole_products() if arguments.whole else place.working():
        if arguments.song:
            _song(arguments, policy, place)
            return 0
        with place.working():
            _tell("step", *_step(arguments, place))
            _tell("chunk", *_chunk(arguments, place))
    return 0


def _step(arguments: argparse.Namespace, place: Place) -> tuple[float, float, float]:
    stack, layers = budget.MUSIC["turbo"], arguments.layers
    # Layers without a window and with one take turns; the former take more.
    windows = [_WINDOW if number % 2 else None for number in range(layers)]
    shape = TransformerShape(
        stack.width, stack.inner, Shape(stack.heads, stack.kv_heads, 128, 1e-6), windows, 1e6,
        stack.width, 64, 128, 2,
    )  # fmt: skip
    model = _in_half(Transformer(shape))
    if arguments.bits is not None:
        quantise(model, arguments.bits)
    mx.eval(model.parameters())
    tokens = int(arguments.seconds * budget.TOKENS_A_SECOND)
    given = mx.zeros((1, 600, stack.width)), mx.zeros((1, 2 * tokens, 128))
    latents = mx.random.normal((1, 2 * tokens, 64))
    mx.eval(*given, latents)
    kept = dataclasses.replace(stack, layers=layers)
    said = budget.step_gib(arguments.seconds, 1, kept) * GIB

    def run() -> None:
        song = model.song(*given)
        plain, times = model.times(_STEPS)
        mx.eval(song.keys, song.values, song.context, plain, times)
        mx.eval(model(latents, song, plain[0], times[0]))

    return _measured(run, said, arguments.within, place)


def _chunk(arguments: argparse.Namespace, place: Place) -> tuple[float, float, float]:
    strides, multiples = [2, 4, 4, 6, 10], [1, 2, 4, 8, 16]
    vae = Vae(VaeShape(128, strides, multiples, 128, 64, 2), place.ways(compiles=False))
    mx.eval(vae.parameters())
    latents = mx.random.normal((1, arguments.frames, 64))
    mx.eval(latents)
    said = budget.wave_gib(arguments.frames) * GIB
    return _measured(lambda: mx.eval(vae.decoder(latents)), said, arguments.within, place)


def _song(arguments: argparse.Namespace, policy: DevicePolicy, place: Place) -> None:
    """Weights and a song, all of it by the handler, as users have it."""
    with place.working():
        language = _language_model(arguments.bits)
    known = budget.fit(
        "turbo", _LANGUAGE, arguments.bits, policy.total_memory, int(arguments.seconds)
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = _checkpoint(arguments.weights or Path(folder), policy)
        handler = AceStepHandler()
        mx.reset_peak_memory()
        handler.load(str(weights), _as_on_a_mac(policy, arguments.bits))
    _tell("loading", mx.get_peak_memory(), known.weights * GIB)
    _tell("weights", mx.get_active_memory(), known.weights * GIB)
    mx.reset_peak_memory()
    began = time.monotonic()
    made = handler.generate_music(
        "warm lo-fi piano", "[verse]\nsoft notes", inference_steps=arguments.steps,
        audio_duration=arguments.seconds, seed=[1], use_random_seed=False, shift=1.0,
    )  # fmt: skip
    if not made["success"]:
        raise RuntimeError(made["error"])
    took, song = time.monotonic() - began, made["audios"][0]
    if (long := song["tensor"].shape[1] / song["sample_rate"]) < arguments.seconds:
        raise RuntimeError(f"only {long:g} s were made: {made['status_message']}")
    _tell("song", mx.get_peak_memory(), known.peak * GIB, took, known.most * GIB)
    del language


def _as_on_a_mac(policy: DevicePolicy, bits: int | None) -> DevicePolicy:
    half, whole = policy.with_dtype("bfloat16"), policy.with_dtype("float32")
    dtypes = MappingProxyType({**half.dtypes, "vae": whole.dtypes["vae"]})
    return dataclasses.replace(half, dtypes=dtypes).with_quantization(str(bits) if bits else None)


def _checkpoint(folder: Path, policy: DevicePolicy) -> Path:
    made = folder / shapes.SAVED
    if not made.exists():
        torch_policy = resolve(policy.device, dtype="bfloat16")
        handler = shapes.make_handler("turbo", torch_policy)
        shapes.save(handler, folder)
        handler.unload()
        torch_policy.flush()
    return made


def _language_model(bits: int | None) -> Any:
    from mlx_lm.models import qwen3

    from acestep.lm.mlx_weights import make_small

    known = budget.LANGUAGE[_LANGUAGE]
    config = qwen3.ModelArgs(
        model_type="qwen3", hidden_size=known.width, num_hidden_layers=known.layers,
        intermediate_size=known.inner, num_attention_heads=known.heads, rms_norm_eps=1e-6,
        vocab_size=budget.LM_VOCABULARY, num_key_value_heads=known.kv_heads,
        max_position_embeddings=40960, rope_theta=1e6, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = _in_half(qwen3.Model(config))
    if bits is not None:
        make_small(model, bits)
    mx.eval(model.parameters())
    return model


@contextmanager
def _whole_products() -> Iterator[None]:
    def multiplied(layer: Any, given: mx.array) -> mx.array:
        weight = mx.dequantize(
            layer["weight"], layer["scales"], layer["biases"], layer.group_size, layer.bits
        )
        made = given @ weight.T
        return made + layer["bias"] if "bias" in layer else made

    before = nn.QuantizedLinear.__call__
    nn.QuantizedLinear.__call__ = multiplied
    try:
        yield
    finally:
        nn.QuantizedLinear.__call__ = before


def _in_half(model: Any) -> Any:
    model.update(tree_map(lambda value: value.astype(mx.bfloat16), model.parameters()))
    return model


def _measured(run: Any, said: float, within: bool, place: Place) -> tuple[float, float, float]:
    """Bytes at the peak above what was there, bytes that were said, and seconds; once warm on a GPU."""
    mx.clear_cache()
    before = mx.get_active_memory()
    usual = mx.set_memory_limit(int(before + said)) if within else None
    mx.reset_peak_memory()
    began = time.monotonic()
    run()
    if not place.on_host:
        began = time.monotonic()
        run()
    measured, took = mx.get_peak_memory() - before, time.monotonic() - began
    if usual is not None:
        mx.set_memory_limit(usual)
    return measured, said, took


def _tell(
    part: str,
    measured: float,
    predicted: float,
    seconds: float | None = None,
    most: float | None = None,
) -> None:
    """A line of JSON; `predicted` is what is needed, `most` with what MLX begins ahead of time."""
    counted = {"measured_mib": measured, "predicted_mib": predicted, "most_mib": most}
    figures: dict[str, Any] = {
        name: round(value / 2**20, 1) for name, value in counted.items() if value is not None
    }
    if seconds is not None:
        figures["seconds"] = round(seconds, 3)
    result(json.dumps({"part": part, **figures}))


if __name__ == "__main__":
    raise SystemExit(main())
