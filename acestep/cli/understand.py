"""`acestep understand`: a song in, its caption, lyrics and metadata out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.checkpoint.finding import find
from acestep.checkpoint.names import SOURCES
from acestep.cli.planner import add_sample_options, check_sampling, load, print_sample
from acestep.console.terminal import EXIT_OK, progress_bar, quiet_libraries


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "understand",
        help="describe a song",
        description="Describe a song: caption, lyrics and metadata, printed as YAML.",
    )
    parser.add_argument("song", type=Path, help="an audio file")
    parser.add_argument(
        "--model",
        default="auto",
        help=f"checkpoint that reads the audio: auto, demo, {', '.join(SOURCES)}, a "
        "folder or a Hub id (default: auto)",
    )
    add_sample_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the description."""
    find(arguments.model)
    check_sampling(arguments)
    from acestep.device import resolve

    policy = resolve(
        arguments.device,
        dtype=arguments.dtype,
        quantization=arguments.quantize,
        engine=arguments.engine,
    )
    from acestep.handler import AceStepHandler
    from acestep.inference import understand_music
    from acestep.song import audio_files

    audio = audio_files.read(arguments.song)
    quiet_libraries()
    with progress_bar(not (arguments.quiet or arguments.json)) as progress:
        handler = AceStepHandler()
        handler.load(arguments.model, policy, progress=progress)
        planner = load(arguments, policy)
        sample = understand_music(
            planner,
            audio=audio,
            dit_handler=handler,
            temperature=arguments.temperature,
            seed=arguments.seed,
            progress=progress,
        )
    print_sample(sample, arguments.json, {"song": str(arguments.song)})
    return EXIT_OK
