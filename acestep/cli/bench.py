"""`acestep bench`: how long songs take here, stage by stage and beside plain diffusers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.cli.planner import add_planner_options
from acestep.cli.planner import load as load_planner
from acestep.console.terminal import (
    COMPILE_HELP,
    EXIT_OK,
    add_device_option,
    add_engine_option,
    add_quantize_option,
    quiet_libraries,
    result,
    say,
)
from acestep.device import DTYPE_CHOICES
from acestep.errors import RequestError

if TYPE_CHECKING:
    from acestep.bench.measure import Planned, Row, StartUp
    from acestep.device import DevicePolicy
    from acestep.llm_inference import LLMHandler

SHAPES = ("demo", "wide", "turbo", "xl")
LM_SHAPES = ("small", "0.6B", "1.7B", "4B")
_GROWTH_SECONDS = (10.0, 30.0, 60.0, 120.0, 240.0, 360.0, 480.0, 600.0)
_GROWTH_BATCHES = (1, 2, 4, 8)


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="how long songs take here, stage by stage and beside plain diffusers",
        description="Time songs of random weights at a named size (nothing is downloaded): every "
        "stage, the first call and warm ones, peak memory, and plain diffusers in alternating "
        "runs of the same process.",
    )
    add_device_option(parser)
    add_engine_option(parser)
    parser.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto")
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="demo",
        help="demo: the built-in checkpoint; wide: every width four times as large; turbo, "
        "xl: the 2B and 4B models' (default: demo)",
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0], metavar="S")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--repeats", type=int, default=5, help="warm runs of each (default: 5)")
    parser.add_argument("--compile", action="store_true", help=f"our side: {COMPILE_HELP}")
    parser.add_argument(
        "--think",
        action="store_true",
        help="also time planning by a language model, and whole planned songs from words to file; "
        f"--lm-model may be a shape with random weights: {', '.join(LM_SHAPES)}",
    )
    add_quantize_option(parser)
    # Its weights are random as well: the default needs no download either.
    add_planner_options(parser, "demo")
    parser.add_argument(
        "--against",
        choices=("diffusers", "compiled", "both", "nothing"),
        default="diffusers",
        help="what to compare with: diffusers as it is, with compiled blocks and decoder, or both",
    )
    parser.add_argument(
        "--growth", action="store_true", help="also 10 to 600 s, and batches of 1 to 8"
    )
    parser.add_argument("--growth-seconds", type=float, nargs="+", default=_GROWTH_SECONDS)
    parser.add_argument("--growth-batches", type=int, nargs="+", default=_GROWTH_BATCHES)
    parser.add_argument(
        "--start-up",
        type=int,
        default=0,
        metavar="N",
        help="also N fresh processes: save the weights, and time a command that loads them and "
        "makes one song",
    )
    parser.add_argument(
        "--lm",
        choices=LM_SHAPES,
        nargs="+",
        metavar="SHAPE",
        help="instead of songs: codes a second of language models of these shapes "
        f"({', '.join(LM_SHAPES)}), beside transformers' generate() and what the memory allows",
    )
    parser.add_argument(
        "--codes", type=int, default=150, help="with --lm: codes an item (default: 150, 30 s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write a picture of them")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write what was asked for."""
    if arguments.repeats < 1 or min(arguments.batch) < 1 or min(arguments.seconds) < 0.5:
        raise RequestError("give at least 1 repeat, batches of at least 1 and songs of 0.5 s")
    if arguments.codes < 1:
        raise RequestError(f"--codes {arguments.codes} is out of range; give 1 or more")
    if arguments.start_up < 0:
        raise RequestError(f"--start-up {arguments.start_up} is out of range; give 0 or more")
    from acestep.bench.measure import compare, growth, planned, start_up
    from acestep.bench.picture import draw
    from acestep.bench.shapes import make_handler, save
    from acestep.device import resolve

    quiet_libraries()
    policy = resolve(
        arguments.device,
        dtype=arguments.dtype,
        quantization=arguments.quantize,
        engine=arguments.engine,
    )
    if arguments.lm:
        from acestep.bench.lm_benchmark import measure

        for name in arguments.lm:
            measure(
                policy, name, arguments.batch, arguments.codes, arguments.repeats,
                compiled=arguments.compile, plain=arguments.against != "nothing",
            )  # fmt: skip
        return EXIT_OK
    # The tiers guard small machines against requests too large; here cost is the question, unless
    # somebody asks what a small machine would make of it.
    if "MAX_CUDA_VRAM" not in os.environ:
        os.environ.setdefault("ACESTEP_DEVICE_MEMORY_GB", "80")
    handler = make_handler(arguments.shape, policy, compiled=arguments.compile)
    say(f"acestep: bench of {handler.status()}")
    planner = _planner(arguments, policy) if arguments.think else None
    if planner is not None:
        say(f"acestep: planning by {planner.model_name} on {policy.name}")
    sides = {
        "diffusers": ("acestep", "diffusers"),
        "compiled": ("acestep", "diffusers compiled"),
        "both": ("acestep", "diffusers", "diffusers compiled"),
        "nothing": ("acestep",),
    }[arguments.against]
    compared: list[Row] = []
    for seconds in arguments.seconds:
        for batch in arguments.batch:
            rows = compare(handler, seconds, arguments.repeats, batch, sides, planner)
            _print(rows, heading=not compared)
            compared += rows
    grown: list[Row] = []
    if arguments.growth:
        shortest = min(arguments.growth_seconds)
        at = 30.0 if shortest < 30 <= max(arguments.growth_seconds) else shortest
        grown = growth(handler, arguments.growth_seconds, arguments.growth_batches, at)
        _print(grown, heading=False)
    best = max(
        (row for row in [*compared, *grown] if row.side == "acestep"),
        key=lambda row: row.songs_per_hour * row.seconds,
    )
    result(
        f"most music: {best.songs_per_hour:.0f} songs of {best.seconds:g} s an hour, "
        f"{best.batch} at a time"
    )
    if planner is not None:
        for seconds in arguments.seconds:
            for batch in arguments.batch:
                _print_planned(
                    planned(handler, planner, seconds, batch, arguments.repeats), seconds, batch
                )
    started: list[StartUp] = []
    if arguments.start_up:
        with tempfile.TemporaryDirectory() as folder:
            saved = save(handler, Path(folder))
            started = start_up(saved, policy.name, arguments.seconds[0], arguments.start_up)
        whole, parts = (
            [getattr(run, name) for run in started] for name in ("command", "from_disk")
        )
        result(
            f"start-up: from disk to a song's file {statistics.median(parts):.2f} s, the whole "
            f"command {statistics.median(whole):.2f} s, medians of {len(started)}"
        )
    title = f"{handler.status()}{', compiled' if arguments.compile else ''}"
    if arguments.json:
        text = {
            "what": title,
            "rows": [row.record() for row in [*compared, *grown]],
            "start_up": [dataclasses.asdict(run) for run in started],
        }
        arguments.json.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    if arguments.png:
        draw(arguments.png, title, compared, grown)
    return EXIT_OK


def _planner(arguments: argparse.Namespace, policy: DevicePolicy) -> LLMHandler:
    """What `--lm-model` names; a shape is one with random weights."""
    if arguments.lm_model not in LM_SHAPES:
        return load_planner(arguments, policy)
    from acestep.bench.lm_benchmark import make_planner

    return make_planner(arguments.lm_model, policy)


def _print_planned(made: Planned, seconds: float, batch: int) -> None:
    result(
        f"planned, {batch} of {seconds:g} s, words to file: first {made.first:.3f} s, warm "
        f"{made.warm:.3f} s ({made.spread[0]:.3f} to {made.spread[1]:.3f}): planning "
        f"{made.lm:.3f}, music {made.music:.3f}, saving {made.saving:.3f}; peak {made.peak:.2f} GiB"
    )


def _print(rows: list[Row], *, heading: bool) -> None:
    """A line a row, as it is measured; the ratio is to this project's time."""
    if heading:
        result(
            f"{'side':<19}{'song s':>7}{'batch':>6}{'first s':>9}{'warm s':>9}{'ratio':>7}"
            f"{'peak GiB':>10}  stages, ms"
        )
    ours = rows[0].warm
    for row in rows:
        ratio = row.warm / ours if len(rows) > 1 and row.seconds == rows[0].seconds else 1.0
        parts = [*row.stages.items(), ("total", row.total)] if row.stages else []
        stages = " ".join(f"{name} {1e3 * spent:.1f}" for name, spent in parts)
        result(
            f"{row.side:<19}{row.seconds:>7g}{row.batch:>6}{row.first:>9.3f}{row.warm:>9.4f}"
            f"{ratio:>7.2f}{row.peak:>10.2f}  {stages}"
        )
