"""Measures lyric alignment on one device: `python -m acestep.bench.alignment_benchmark --device …`.

Checks the reference results first, then times the whole score and the whole LRC beside a
straightforward implementation (numpy, and the recurrence compiled by numba if that is
installed), and last the capture of attention beside a plain forward pass. Ratios are of
one run on one machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from acestep.console.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    OneLineParser,
    add_device_option,
    quiet_libraries,
    result,
)
from acestep.dit_alignment_score import MusicLyricScorer, MusicStampsAligner, TokenTimestamp

if TYPE_CHECKING:
    import torch

    from acestep.device import DevicePolicy

GOLDEN = Path(__file__).parents[2] / "tests" / "acestep" / "golden" / "alignment"
TURBO_SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
SMALL_SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 16,
}
LATENT_FRAMES_PER_SECOND = 25


class ByteTokens:
    """The tokenizer of the reference results: one token a byte of UTF-8."""

    def decode(self, token_ids: list[int]) -> str:
        """The text of the bytes."""
        return bytes(token_ids).decode("utf-8", "replace")


SCORER = MusicLyricScorer(ByteTokens())
ALIGNER = MusicStampsAligner(ByteTokens())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a reference result is missed."""
    arguments = _parser().parse_args(argv)
    import torch

    from acestep.device import resolve

    policy = resolve(arguments.device)
    result(f"device {policy.name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    good = check_golden(arguments.golden, policy)
    benchmark_alignment(policy, arguments)
    if arguments.capture != "none":
        shape = TURBO_SHAPE if arguments.capture == "turbo" else SMALL_SHAPE
        benchmark_capture(policy, shape, arguments)
    return EXIT_OK if good else EXIT_FAILED


def check_golden(folder: Path, policy: DevicePolicy) -> bool:
    """Compare every reference result on the device, in float32 and in bfloat16.

    Returns:
        True if in float32 paths, masks, sentences and LRC text are equal, metrics agree to
        1e-4 and times to 1e-6.
    """
    import torch

    cases = sorted(folder.glob("*.json"))
    worst = {"float32": np.zeros(2), "bfloat16": np.zeros(2)}
    equal = dict.fromkeys(worst, 0)
    for path in cases:
        case = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz")) as arrays:
            attention = torch.from_numpy(arrays["attention"])
        for name in worst:
            placed = attention.to(policy.device, getattr(torch, name))
            same, score_off, time_off = _compare(case, placed)
            equal[name] += same
            worst[name] = np.maximum(worst[name], [score_off, time_off])
    for name, (score_off, time_off) in worst.items():
        result(
            f"reference results, {name}: {equal[name]} of {len(cases)} have equal masks, paths, "
            f"sentences and LRC; metrics off by at most {score_off:.1e}, times {time_off:.1e} s"
        )
    score_off, time_off = worst["float32"]
    return bool(cases and equal["float32"] == len(cases) and score_off <= 1e-4 and time_off <= 1e-6)


def _compare(case: dict[str, Any], attention: torch.Tensor) -> tuple[bool, float, float]:
    """Whether what must be equal is, and the largest deviations of metrics and of times."""
    ids, heads, expected = case["token_ids"], case["layers_heads"], case["expected"]
    width = case["medfilt_width"]
    info = SCORER.lyrics_alignment_info(attention, ids, heads, medfilt_width=width)
    score = SCORER.calculate_score(**info)
    stamps = ALIGNER.stamps_align_info(
        attention, ids, case["duration_s"], heads, medfilt_width=width
    )
    found = ALIGNER.get_timestamps_and_lrc(**stamps)
    sentences = [[s.text, s.start, s.end, s.confidence] for s in found["sentence_timestamps"]]
    same = (
        info["type_mask"].tolist() == expected["type_mask"]
        and info["path_coords"].tolist() == expected["path_coords"]
        and sentences == expected["sentences"]
        and found["lrc_text"] == expected["lrc"]
    )
    times = np.array([[token.start, token.end] for token in found["token_timestamps"]])
    wanted = np.array([[start, end] for _, start, end in expected["tokens"]])
    score_off = max(abs(value - expected[name]) for name, value in score.items())
    return same, score_off, float(np.abs(times - wanted).max())


def benchmark_alignment(policy: DevicePolicy, arguments: argparse.Namespace) -> None:
    """Time score and LRC at one size, ours and the straightforward way."""
    import torch

    tokens, frames, heads = arguments.tokens, arguments.frames, arguments.heads
    generator = torch.Generator().manual_seed(0)
    centres = torch.linspace(0, frames, tokens)[:, None]
    ridge = torch.exp(-(((torch.arange(frames) - centres) / (2 * frames / tokens)) ** 2))
    noise = torch.rand(1, heads, tokens, frames, generator=generator)
    attention = (0.7 * ridge + 0.3 * noise).to(policy.device)
    ids = [10 if index % 30 == 29 else 97 for index in range(tokens)]
    table = {0: list(range(heads))}

    def score() -> object:
        return SCORER.calculate_score(**SCORER.lyrics_alignment_info(attention, ids, table))

    def lrc() -> object:
        info = ALIGNER.stamps_align_info(attention, ids, frames * 0.08, table)
        return ALIGNER.get_timestamps_and_lrc(**info)["lrc_text"]

    works = {"score": score, "LRC": lrc}
    ours = {name: _timed(work, arguments.repeat, policy) for name, work in works.items()}
    result(f"{heads} heads of {tokens} x {frames}, float32 on {policy.name}:")
    for name, (first, best) in ours.items():
        result(f"  whole {name}: first call {first:.3f} s, best {best:.3f} s")
    _report_warping(tokens, frames, arguments.repeat)
    if arguments.no_comparison or importlib.util.find_spec("numba") is None:
        result("  no comparison: it needs numba, and --no-comparison left out")
        return
    # Each is timed with its own compilation, as a caller of that one alone would see it.
    plain = {
        "score": lambda warp: plain_score(attention.cpu().numpy()[0], ids, warp),
        "LRC": lambda warp: plain_lrc(attention.cpu().numpy()[0], ids, frames * 0.08, warp),
    }
    for name, work in plain.items():
        warp = _compiled()
        first, best = _timed(lambda work=work, warp=warp: work(warp), arguments.repeat, policy)  # type: ignore[misc]
        ours_first, ours_best = ours[name]
        result(
            f"  numpy and numba {name}: first call {first:.3f} s, best {best:.3f} s; "
            f"ours takes {ours_first / first:.2f} of the first, {ours_best / best:.2f} of the best"
        )


def _report_warping(tokens: int, frames: int, repeat: int) -> None:
    """Time the warping alone, which runs on one core of the host."""
    from acestep.alignment.dtw import warp_path

    for dtype in (np.float32, np.float64):
        cost: NDArray[Any] = np.random.default_rng(0).random((tokens, frames)).astype(dtype)
        first, best = _timed(lambda cost=cost: warp_path(cost), repeat, None)  # type: ignore[misc]
        result(
            f"  time warping alone, {np.dtype(dtype).name}: first call {first:.3f} s, "
            f"best {best:.3f} s"
        )


def plain_warp(cost: NDArray[Any]) -> NDArray[Any]:
    """The recurrence cell by cell and the walk back, to be compiled by numba."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf, cost.dtype)
    taken = np.full((rows + 1, columns + 1), 2, np.int8)
    taken[:, 0] = 1
    total[0, 0] = 0
    for j in range(1, columns + 1):
        for i in range(1, rows + 1):
            c0, c1, c2 = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if c0 < c1 and c0 < c2:
                taken[i, j] = 0
                total[i, j] = cost[i - 1, j - 1] + c0
            elif c1 < c0 and c1 < c2:
                taken[i, j] = 1
                total[i, j] = cost[i - 1, j - 1] + c1
            else:
                total[i, j] = cost[i - 1, j - 1] + c2
    path = np.empty((rows + columns, 2), np.int64)
    i, j, length = rows, columns, 0
    while i > 0 or j > 0:
        path[length, 0], path[length, 1] = i - 1, j - 1
        length += 1
        step = 2 if i == 0 else 1 if j == 0 else taken[i, j]
        i -= 0 if step == 2 else 1
        j -= 0 if step == 1 else 1
    return path[:length][::-1]


Warp = Callable[[NDArray[Any]], NDArray[Any]]


def plain_score(heads: NDArray[Any], ids: list[int], warp: Warp) -> dict[str, float]:
    """The score from `[heads, tokens, frames]` the straightforward way."""
    mean = heads.mean(axis=0)
    energy = (mean - mean.min()) / (mean.max() - mean.min())
    mask = SCORER.lyrics_alignment_info(heads[None, :, :, :1], ids, {0: [0]})["type_mask"]
    return SCORER.calculate_score(energy, mask, warp(-(energy**2)))


def plain_lrc(heads: NDArray[Any], ids: list[int], seconds: float, warp: Warp) -> str:
    """The LRC text from `[heads, tokens, frames]` the straightforward way."""

    def softmax(values: NDArray[Any], axis: int) -> NDArray[Any]:
        powers = np.exp(values - values.max(axis=axis, keepdims=True))
        return np.asarray(powers / powers.sum(axis=axis, keepdims=True))

    product = softmax(heads, -1) * softmax(heads, -2)
    for axis in (-1, -2):
        median = np.median(product, axis=axis, keepdims=True)
        product = np.maximum(product - 2 * median, 0)
    product = product**2
    contrast = ((product - product.mean()) / (product.std() + 1e-9)).mean(axis=0)
    path = warp(-contrast.astype(np.float64))
    frame = seconds / heads.shape[-1]
    stamps = []
    for row, token in enumerate(ids):
        columns = path[path[:, 0] == row, 1]
        text = ByteTokens().decode([token])
        stamps.append(TokenTimestamp(token, text, columns.min() * frame, columns.max() * frame))
    return ALIGNER.format_lrc(ALIGNER.sentence_timestamps(stamps))


def _compiled() -> Warp:
    numba = importlib.import_module("numba")
    compiled: Warp = numba.njit(plain_warp)
    return compiled


def benchmark_capture(
    policy: DevicePolicy, shape: dict[str, int], arguments: argparse.Namespace
) -> None:
    """Time the capture of the turbo heads beside a forward pass of the layers it needs, and
    its peak memory beside that of a whole forward pass."""
    import torch
    from diffusers.models import AceStepTransformer1DModel

    from acestep.alignment.heads import TURBO_HEADS
    from acestep.engines.torch.cross_attention import capture_cross_attention

    quiet_libraries()
    needed = max(TURBO_HEADS) + 1
    torch.manual_seed(0)
    with torch.device(policy.device):
        model = AceStepTransformer1DModel(**shape).to(policy.dtype).eval().requires_grad_(False)
        short = AceStepTransformer1DModel(**{**shape, "num_hidden_layers": needed})
        short = short.to(policy.dtype).eval().requires_grad_(False)
    frames = arguments.seconds * LATENT_FRAMES_PER_SECOND
    encoded = arguments.tokens + 256  # lyrics, and a text prompt of the usual limit
    sizes = {
        "hidden_states": (1, frames, 64),
        "context_latents": (1, frames, 128),
        "encoder_hidden_states": (1, encoded, shape["hidden_size"]),
    }
    inputs = {
        name: torch.randn(size).to(policy.device, policy.dtype) for name, size in sizes.items()
    }
    inputs |= dict.fromkeys(
        ("timestep", "timestep_r"), torch.full((1,), 0.125).to(policy.device, policy.dtype)
    )
    lyrics = slice(0, arguments.tokens)

    def capture() -> object:
        return capture_cross_attention(model, inputs, TURBO_HEADS, lyrics)

    def plain(which: Any) -> Callable[[], object]:
        def forward() -> object:
            with torch.no_grad():
                return which(**inputs)

        return forward

    _, partial_time = _timed(plain(short), arguments.repeat, policy)
    _, capture_time = _timed(capture, arguments.repeat, policy)
    del short
    peaks: list[float] = []
    for work in (plain(model), capture):
        policy.flush()
        policy.reset_peak_memory()
        work()
        policy.synchronize()
        peaks.append(policy.peak_memory())
    result(
        f"capture at {arguments.seconds} s, {arguments.tokens} lyric tokens, hidden "
        f"{shape['hidden_size']}, {policy.dtype}: {capture_time * 1e3:.1f} ms; forward of the "
        f"{needed} layers it needs {partial_time * 1e3:.1f} ms; ratio "
        f"{capture_time / partial_time:.2f}"
    )
    if not policy.is_accelerator:
        result("  peak memory: not compared, a process keeps only its highest ever")
        return
    result(
        f"  peak memory {peaks[1]:.3f} GiB; whole forward {peaks[0]:.3f} GiB; ratio "
        f"{peaks[1] / peaks[0]:.3f}"
    )


def _timed(
    work: Callable[[], object], repeat: int, policy: DevicePolicy | None
) -> tuple[float, float]:
    """Seconds of the first call, and of the fastest of `repeat` later ones."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        work()
        if policy is not None:
            policy.synchronize()
        times.append(time.perf_counter() - start)
    return times[0], min(times[1:])


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m acestep.bench.alignment_benchmark", description=__doc__)
    add_device_option(parser)
    parser.add_argument("--tokens", type=int, default=1000, help="rows (default: 1000)")
    parser.add_argument("--frames", type=int, default=6000, help="columns (default: 6000)")
    parser.add_argument("--heads", type=int, default=7, help="as turbo has (default: 7)")
    parser.add_argument("--seconds", type=int, default=240, help="of the song to capture from")
    parser.add_argument("--repeat", type=int, default=5, help="calls after the first")
    parser.add_argument(
        "--capture", choices=("none", "small", "turbo"), default="small", help="model size"
    )
    parser.add_argument("--no-comparison", action="store_true", help="leave numba out")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="the reference results")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
