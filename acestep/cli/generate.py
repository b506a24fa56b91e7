"""`acestep generate`: a prompt in, song files out."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.checkpoint.finding import find
from acestep.checkpoint.kinds import ALL_TASKS
from acestep.checkpoint.names import SOURCES
from acestep.cli import file_options, song_options
from acestep.cli import lyrics as lyric_output
from acestep.cli.planner import add_planner_options, planned_progress
from acestep.cli.planner import check as check_planner
from acestep.cli.planner import load as load_planner
from acestep.console.terminal import (
    COMPILE_HELP,
    EXIT_OK,
    add_device_option,
    add_engine_option,
    add_quantize_option,
    progress_bar,
    quiet_libraries,
    say,
)
from acestep.console.terminal import result as print_result
from acestep.device import DTYPE_CHOICES
from acestep.errors import RequestError
from acestep.song import normalise
from acestep.song.formats import FORMATS
from acestep.song.planning import PLANNED_TASKS
from acestep.song.request import MAX_SONGS, check_range

if TYPE_CHECKING:
    from acestep.device import DevicePolicy
    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler
    from acestep.song.formats import Encoding
    from acestep.song.outcome import Generation

OFFLOAD_CHOICES = ("none", "dit", "all")
DEMO_NOTICE = (
    "no real checkpoint here: using the built-in demo, a toy that plays ten instruments; "
    "for real songs: acestep download turbo"
)
LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""

# Uncompressed 32-bit stereo at 48 kHz: more than any of the formats takes.
_BYTES_PER_SECOND = 48000 * 2 * 4


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "generate",
        help="make songs from a prompt",
        description="Make songs. Each file gets a JSON file beside it that says how it was made.",
    )
    parser.add_argument("prompt", help="what the music is like; - reads it from standard input")
    song_options.add_options(parser)
    _add_model_options(parser)
    lyric_output.add_options(parser)
    _add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the songs and print a line for each file."""
    params = song_options.params(arguments)
    songs = song_options.songs(arguments)
    paths = output_paths(file_options.name(arguments.output, arguments.format), songs)
    config = file_options.config(arguments, paths[0], songs)
    check_output(paths, arguments.force, normalise.duration(params.duration))
    from acestep.device import resolve

    policy = resolve(
        arguments.device,
        dtype=arguments.dtype,
        quantization=arguments.quantize,
        engine=arguments.engine,
    )
    checkpoint = find(arguments.model)
    timed = lyric_output.lyric_options(arguments)
    words = normalise.lyrics(params.lyrics, params.instrumental)
    sung = "" if words == normalise.INSTRUMENTAL else words
    lyric_output.check(timed, sung, checkpoint, paths, arguments.force)
    quiet = arguments.quiet or arguments.json

    from acestep import inference
    from acestep.handler import AceStepHandler

    quiet_libraries()
    # Before anything is loaded: it takes a minute with a real checkpoint.
    inference.make_request(params, config).validated(ALL_TASKS)
    if arguments.lora is not None and not arguments.lora.exists():
        raise RequestError(f"{normalise.shown(arguments.lora)}: no such adapter file")
    if arguments.think:
        check_planner(arguments, policy)
    if checkpoint.builtin and arguments.model == "auto" and not quiet:
        say(DEMO_NOTICE)
    for line in song_options.ignored(arguments):
        say(f"acestep: warning: {line}")
    handler = AceStepHandler()
    started = time.perf_counter()
    with progress_bar(not quiet) as progress:
        handler.load(
            arguments.model,
            policy,
            use_flash_attention=arguments.flash_attention,
            compile_model=arguments.compile,
            offload=arguments.offload,
            progress=progress,
        )
        if arguments.lora is not None:
            handler.load_lora(arguments.lora, arguments.lora_scale)
        planner = _planner(arguments, policy)
        plans = planner is not None and params.task_type in PLANNED_TASKS
        told = planned_progress(progress) if plans else progress
        made = inference.run(handler, params, config, told, planner)
    lora = arguments.lora and {"file": str(arguments.lora), "scale": arguments.lora_scale}
    records = _save(handler, made, paths, params, lora, config.encoding(), arguments.force)
    for warning in made.warnings:
        say(f"acestep: warning: {warning}")
    if timed.any:
        _time_lyrics(handler, made, records, timed)
    seconds = time.perf_counter() - started
    _print(records, made, seconds, handler.device, arguments)
    return EXIT_OK


def _planner(arguments: argparse.Namespace, policy: DevicePolicy) -> LLMHandler | None:
    """The language model, loaded, if it is asked for."""
    if not arguments.think:
        return None
    return load_planner(arguments, policy, offload=arguments.offload != "none")


def output_paths(output: Path, batch: int) -> list[Path]:
    """`song.flac`, or `song-1.flac`, `song-2.flac`, … for a batch.

    Raises:
        RequestError: the extension is not a known format, or the batch not of a size that
            anybody may ask for.
    """
    from acestep.song.audio_files import file_format

    file_format(output)
    check_range("batch size", batch, 1, MAX_SONGS)
    if batch == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{n + 1}{output.suffix}") for n in range(batch)]


def check_output(paths: list[Path], force: bool, duration: float | None) -> None:
    """Refuse, before any work is done, what could not be written at its end.

    Raises:
        RequestError: a file exists, the folder cannot be written to, or its disk is full.
    """
    from acestep.song.saving import record_paths

    for path in paths:
        check_name(path)
        records = record_paths(path)
        for file in (path, *records):
            if file.is_dir():
                raise RequestError(f"{file} is a folder; give the name of a file with -o")
        # A record finds another name where the first is taken, but no third.
        for taken in ([path], records):
            if all(file.exists() for file in taken) and not force:
                raise RequestError(f"{taken[-1]} exists; overwrite it with --force")
    folder = paths[0].absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"cannot write to {folder}; choose another place with -o")
    needed = math.ceil((duration or 0) * _BYTES_PER_SECOND) * len(paths)
    free = shutil.disk_usage(folder).free
    if free < max(needed, 1):
        raise RequestError(
            f"the disk of {folder} is full: {free / 2**20:.1f} MiB free, up to "
            f"{needed / 2**20:.1f} MiB needed; free some space or choose another place with -o"
        )


def check_name(path: Path) -> None:
    """Refuse names that no file can have, or that no record can tell.

    Raises:
        RequestError: says which, and what to do.
    """
    try:
        length = max(len(part.encode()) for part in (*path.parts, ""))
    except UnicodeEncodeError:
        raise RequestError(
            f"the name {str(path).encode(errors='backslashreplace').decode()} holds bytes that "
            "are no text; give a name in UTF-8 with -o"
        ) from None
    # The record may be called song.flac.json.
    if length + len(".json") > LONGEST_NAME:
        raise RequestError(
            f"the name '{normalise.shown(path.name)}' is {length} bytes long; give one of at "
            f"most {LONGEST_NAME - len('.json')} with -o"
        )


def _save(
    handler: AceStepHandler,
    made: Generation,
    paths: list[Path],
    params: Any,
    lora: dict[str, Any] | None,
    how: Encoding,
    force: bool,
) -> list[dict[str, Any]]:
    from acestep.inference import describe, save_song
    from acestep.song.saving import alternatives

    records = []
    for number in range(len(made.songs)):
        record = describe(handler, made, number)
        for name in ("src_audio", "reference_audio"):
            if getattr(params, name):
                record[name] = str(getattr(params, name))
        if lora is not None:
            record["lora"] = lora
        asked = paths[number]
        names = [asked] if force else alternatives(asked)
        path = save_song(names, made, number, record, how, overwrite=force)
        if path != asked:
            say(f"acestep: warning: {asked} came to exist meanwhile and is kept; this is {path}")
        records.append({"path": str(path), **record})
    return records


def _time_lyrics(
    handler: AceStepHandler,
    made: Generation,
    records: list[dict[str, Any]],
    options: lyric_output.LyricOptions,
) -> None:
    """Write the lyric files of each song, and note them in its record."""
    from acestep.song.outcome import extra_outputs

    outputs = extra_outputs(made)
    for number, record in enumerate(records):
        path = Path(record["path"])
        record |= lyric_output.write(handler, outputs, number, options, path)


def _print(
    records: list[dict[str, Any]],
    made: Generation,
    seconds: float,
    device: str,
    arguments: argparse.Namespace,
) -> None:
    if arguments.json:
        run_figures = {
            "seconds_taken": round(seconds, 3),
            "peak_memory_gib": round(made.peak_memory, 3),
            "stages": {name: round(value, 3) for name, value in made.times.items()},
        }
        print_result(json.dumps([{**record, **run_figures} for record in records], indent=2))
    elif not arguments.quiet:
        for record in records:
            print_result(
                f"{record['path']}: {record['seconds']:.1f} s of audio in {seconds:.1f} s on "
                f"{device}, peak {made.peak_memory:.2f} GiB, seed {record['seed']}"
            )
            if "lyric_files" in record:
                lyric_output.print_record(Path(record["path"]), record)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model and device")
    model.add_argument(
        "--model",
        default="auto",
        help=f"auto, demo, {', '.join(SOURCES)}, a folder or a Hub id (default: auto)",
    )
    # The bare command has --device too; without SUPPRESS its value would be overwritten.
    add_device_option(parser, default=argparse.SUPPRESS)
    add_engine_option(model)
    model.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto", help="precision")
    model.add_argument(
        "--offload", choices=OFFLOAD_CHOICES, default="none", help="keep idle modules on the host"
    )
    model.add_argument("--compile", action="store_true", help=COMPILE_HELP)
    add_quantize_option(model)
    model.add_argument("--flash-attention", action="store_true", help="use flash-attn (CUDA)")
    model.add_argument(
        "--lora",
        type=Path,
        metavar="FILE",
        help="adapter: of acestep train, PEFT, kohya, LyCORIS, ComfyUI",
    )
    model.add_argument("--lora-scale", type=float, default=1.0, help="how much of it (default: 1)")
    add_planner_options(model)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help=f"song.flac, or a name that ends in {' '.join('.' + kind for kind in FORMATS)}",
    )  # fmt: skip
    file_options.add_options(output)
    output.add_argument(
        "--fit", action="store_true",
        help="make songs that are too long for this machine as long as it can",
    )  # fmt: skip
    output.add_argument("--force", action="store_true", help="overwrite existing files")
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("-q", "--quiet", action="store_true", help="print nothing but problems")
