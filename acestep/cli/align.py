"""`acestep align`: a song that exists and its lyrics in, lyric files out."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from acestep.checkpoint.finding import find
from acestep.cli import lyrics as lyric_output
from acestep.cli.generate import OFFLOAD_CHOICES
from acestep.cli.song_options import text_or_file
from acestep.console.terminal import (
    EXIT_OK,
    add_device_option,
    add_engine_option,
    progress_bar,
    quiet_libraries,
)
from acestep.console.terminal import result as print_result
from acestep.device import DTYPE_CHOICES


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "align",
        help="time the lyrics of a song",
        description="Time the lyrics of a song: song.flac gets a song.lrc beside it, or "
        "whichever of the files are asked for.",
    )
    parser.add_argument("song", type=Path, help="an audio file")
    parser.add_argument("--lyrics", required=True, help="its words, or @FILE")
    parser.add_argument("--language", default="unknown", help="of the vocals, e.g. en")
    parser.add_argument("--prompt", default="", help="what the music is like (helps a little)")
    parser.add_argument("--model", default="auto", help="as for generate (default: auto)")
    # The bare command has --device too; without SUPPRESS its value would be overwritten.
    add_device_option(parser, default=argparse.SUPPRESS)
    add_engine_option(parser)
    parser.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto", help="precision")
    parser.add_argument(
        "--offload", choices=OFFLOAD_CHOICES, default="none", help="keep idle modules on the host"
    )
    lyric_output.add_options(parser)
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but problems")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Align the lyrics and print a line for what was written."""
    options = lyric_output.lyric_options(arguments)
    if not options.any:
        options = dataclasses.replace(options, lrc="lines")
    words = text_or_file(arguments.lyrics)
    checkpoint = find(arguments.model)
    lyric_output.check(options, words, checkpoint, [arguments.song], arguments.force)
    from acestep.device import resolve

    policy = resolve(arguments.device, dtype=arguments.dtype, engine=arguments.engine)
    from acestep.alignment.service import ANY_SONG
    from acestep.handler import AceStepHandler
    from acestep.song import audio_files

    audio = audio_files.read(arguments.song)
    quiet_libraries()
    handler = AceStepHandler()
    with progress_bar(not (arguments.quiet or arguments.json)) as progress:
        handler.load(arguments.model, policy, offload=arguments.offload, progress=progress)
        made = handler.condition_on_lyrics(
            audio, words, arguments.language, arguments.prompt or ANY_SONG
        )
        record = lyric_output.write(handler, made, 0, options, arguments.song)
    if arguments.json:
        print_result(json.dumps({"path": str(arguments.song), **record}, indent=2))
    elif not arguments.quiet:
        lyric_output.print_record(arguments.song, record)
    return EXIT_OK
