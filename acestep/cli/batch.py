"""`acestep batch`: many songs from a file of prompts, on every device there is."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.cli import file_options
from acestep.cli.planner import add_planner_options
from acestep.console.terminal import (
    COMPILE_HELP,
    EXIT_FAILED,
    EXIT_OK,
    add_engine_option,
    add_quantize_option,
    result,
    say,
)
from acestep.device import DTYPE_CHOICES
from acestep.errors import RequestError

if TYPE_CHECKING:
    from acestep.batch.run import Progress
    from acestep.batch.worker import Setting

_LINE_EVERY = 5.0


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "batch",
        help="many songs from a file of prompts, on every device",
        description="Make a song of every line of a JSONL file: an object with a caption, and any "
        "other parameters of a song; an id names its files, else its content does. A run that was "
        "stopped or killed continues where it was; nothing is made twice.",
    )
    parser.add_argument("prompts", type=Path, help="file with a JSON object a line")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the songs")
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["all"],
        metavar="DEVICE",
        help="all (one worker a GPU, else the best device), or names, one worker each: cpu cpu",
    )
    parser.add_argument("--address", help="of a Ray cluster; default: this machine alone")
    parser.add_argument("--config_path", default="auto", help="which checkpoint (default: auto)")
    parser.add_argument("--checkpoint", help="folder that holds the checkpoints")
    parser.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto")
    parser.add_argument("--compile", action="store_true", help=COMPILE_HELP)
    add_engine_option(parser)
    add_quantize_option(parser)
    parser.add_argument(
        "--think", action="store_true",
        help="load a language model too, which plans the songs (a line may say thinking: false)",
    )  # fmt: skip
    add_planner_options(parser)
    parser.add_argument(
        "--ahead", action="store_true",
        help="with --think: plan a song while the one before it is made, on CUDA",
    )  # fmt: skip
    file_options.add_options(parser, default="flac")
    parser.add_argument(
        "--fit", action="store_true",
        help="make songs that are too long for this machine as long as it can",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but problems")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make what is missing, and list what failed."""
    from acestep.batch.jobs import Journal, read_jobs
    from acestep.batch.pools import Pool, RayPool, inline
    from acestep.batch.run import run as run_batch

    if arguments.ahead and not arguments.think:
        raise RequestError("--ahead plans songs; give --think with it")
    setting = setting_of(arguments)
    jobs = read_jobs(arguments.prompts)
    devices = _devices(arguments.devices, arguments.address)

    def make_pool() -> Pool:
        if len(devices) == 1 and arguments.address is None:
            return inline(devices[0], setting)
        return RayPool(devices, setting, arguments.address)

    journal = Journal(arguments.out, setting.audio_format)
    with journal.locked():
        teller = _Teller(arguments.quiet)
        progress = run_batch(jobs, journal, make_pool, teller)
    teller.warn(progress)
    if not arguments.quiet:
        say(f"acestep: {progress.line()}")
    for name, reason in progress.failed.items():
        say(f"acestep: failed: {name}: {reason}")
    if not arguments.quiet:
        result(str(arguments.out))
    return EXIT_FAILED if progress.failed else EXIT_OK


def setting_of(arguments: argparse.Namespace) -> Setting:
    """What every worker is told.

    Raises:
        RequestError: no kind of file is like that, or no song so loud.
    """
    from acestep.batch.worker import Setting

    made = Setting(
        arguments.config_path,
        arguments.checkpoint,
        arguments.dtype,
        arguments.compile,
        arguments.format,
        arguments.bit_depth,
        arguments.bitrate,
        arguments.loudness,
        arguments.fit,
        arguments.quantize,
        arguments.engine,
        (arguments.lm_model or "auto") if arguments.think else None,
        arguments.backend,
        arguments.ahead,
    )
    config = made.config(seed=0)
    config.encoding()
    config.target_loudness()
    return made


def _devices(names: list[str], address: str | None) -> list[str]:
    """One name a worker; on a cluster `all` leaves the number to Ray."""
    from acestep.device import every_device, resolve

    if names == ["all"]:
        return [] if address else every_device()
    if "all" in names:
        raise RequestError("--devices takes all, or names, not both")
    return [resolve(name).name for name in names]


class _Teller:
    """Prints warnings, each once, and the progress: always on a terminal, else every few seconds."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._last, self._warned = quiet, time.monotonic(), 0

    def warn(self, progress: Progress) -> None:
        """Say what has not been said."""
        for line, name in list(progress.warnings.items())[self._warned :]:
            say(f"acestep: warning: {name}: {line}")
        self._warned = len(progress.warnings)

    def __call__(self, progress: Progress) -> None:
        self.warn(progress)
        if self._quiet:
            return
        now = time.monotonic()
        if not sys.stderr.isatty() and now - self._last < _LINE_EVERY:
            return
        self._last = now
        say(f"acestep: {progress.line()}")
