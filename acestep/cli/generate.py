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

from acestep.checkpoint import checkpoints
from acestep.cli import lyrics as lyric_output
from acestep.cli.planner import add_planner_options
from acestep.console.terminal import (
    COMPILE_HELP,
    EXIT_OK,
    add_device_option,
    progress_bar,
    quiet_libraries,
    say,
)
from acestep.console.terminal import result as print_result
from acestep.device import DTYPE_CHOICES
from acestep.errors import RequestError
from acestep.gpu_config import MAX_DURATION, MIN_DURATION
from acestep.song.formats import BIT_DEPTHS, FORMATS
from acestep.song.request import check_range

if TYPE_CHECKING:
    from acestep.device import DevicePolicy
    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler
    from acestep.song.formats import Encoding
    from acestep.song.generation import Generation
    from acestep.song.params import GenerationConfig

OFFLOAD_CHOICES = ("none", "dit", "all")
DEMO_NOTICE = (
    "no real checkpoint here: using the built-in demo, a toy that plays ten instruments; "
    "for real songs: acestep download turbo"
)
# Uncompressed 32-bit stereo at 48 kHz: more than any of the formats takes.
_BYTES_PER_SECOND = 48000 * 2 * 4


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "generate",
        help="make songs from a prompt",
        description="Make songs. Each file gets a JSON file beside it that says how it was made.",
    )
    parser.add_argument("prompt", help="what the music is like")
    _add_music_options(parser)
    _add_source_options(parser)
    _add_model_options(parser)
    lyric_output.add_options(parser)
    _add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the songs and print a line for each file."""
    paths = output_paths(output_name(arguments.output, arguments.format), arguments.batch)
    params = _params(arguments)
    config = _config(arguments, paths[0])
    check_output(paths, arguments.force, arguments.duration)
    from acestep.device import resolve

    policy = resolve(arguments.device, dtype=arguments.dtype)
    checkpoint = checkpoints.find(arguments.model)
    timed = lyric_output.lyric_options(arguments)
    sung = "" if params.instrumental else params.lyrics
    lyric_output.check(timed, sung, checkpoint, paths, arguments.force)
    quiet = arguments.quiet or arguments.json
    if checkpoint.builtin and arguments.model == "auto" and not quiet:
        say(DEMO_NOTICE)

    from acestep import inference
    from acestep.handler import AceStepHandler

    quiet_libraries()
    inference.make_request(params, config).validated(checkpoints.ALL_TASKS)
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
        made = inference.run(handler, params, config, progress, _planner(arguments, policy))
    for warning in made.warnings:
        say(f"acestep: warning: {warning}")
    lora = arguments.lora and {"file": str(arguments.lora), "scale": arguments.lora_scale}
    records = _save(handler, made, paths, params, lora, config.encoding(), arguments.force)
    if timed.any:
        _time_lyrics(handler, made, records, timed)
    seconds = time.perf_counter() - started
    _print(records, made, seconds, handler.device, arguments)
    return EXIT_OK


def _planner(arguments: argparse.Namespace, policy: DevicePolicy) -> LLMHandler | None:
    """The language model, loaded, if it is asked for."""
    if not arguments.think:
        return None
    from acestep.llm_inference import LLMHandler

    planner = LLMHandler()
    offload = arguments.offload != "none"
    planner.load(arguments.lm_model, policy, backend=arguments.backend, offload=offload)
    return planner


def output_name(output: Path | None, kind: str | None) -> Path:
    """The file asked for by name, by kind, or both.

    Raises:
        RequestError: the name says another kind.
    """
    if output is None:
        return Path(f"song.{kind or 'flac'}")
    if kind is None or output.suffix.lower() == f".{kind}":
        return output
    if output.suffix:
        raise RequestError(
            f"{output} does not end in .{kind}, as --format {kind} asks; change one of the two"
        )
    return output.with_name(f"{output.name}.{kind}")


def output_paths(output: Path, batch: int) -> list[Path]:
    """`song.flac`, or `song-1.flac`, `song-2.flac`, … for a batch.

    Raises:
        RequestError: the extension is not a known format, or the batch is not positive.
    """
    from acestep.song.audio_files import file_format

    file_format(output)
    if batch < 1:
        raise RequestError(f"batch size {batch} is out of range; expected at least 1")
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


def _config(arguments: argparse.Namespace, path: Path) -> GenerationConfig:
    """How many songs, of which kind.

    Raises:
        RequestError: no kind of file is like that.
    """
    from acestep.song import loudness
    from acestep.song.audio_files import file_format
    from acestep.song.params import GenerationConfig

    config = GenerationConfig(
        batch_size=arguments.batch,
        use_random_seed=False,
        audio_format=file_format(path),
        audio_bit_depth=arguments.bit_depth,
        audio_bitrate=arguments.bitrate,
        audio_loudness=arguments.loudness,
    )
    config.encoding()
    loudness.check(config.audio_loudness)
    return config


def _params(arguments: argparse.Namespace) -> Any:
    from acestep.inference import GenerationParams

    start, end = arguments.repaint or (0.0, None)
    return GenerationParams(
        task_type=_task(arguments),
        caption=arguments.prompt,
        lyrics=text_or_file(arguments.lyrics),
        instrumental=arguments.instrumental,
        vocal_language=arguments.vocal_language,
        bpm=arguments.bpm,
        keyscale=arguments.key,
        timesignature=arguments.time_signature,
        duration=-1.0 if arguments.duration is None else _duration(arguments.duration),
        reference_audio=arguments.reference,
        src_audio=arguments.source,
        repainting_start=start,
        repainting_end=-1.0 if end is None else end,
        audio_cover_strength=arguments.cover_strength,
        track_name=arguments.track,
        inference_steps=arguments.steps,
        seed=-1 if arguments.seed is None else _seed(arguments.seed),
        guidance_scale=arguments.guidance_scale,
        shift=arguments.shift,
        infer_method=arguments.infer_method,
    )


def _task(arguments: argparse.Namespace) -> str:
    """The task asked for, else the one that the other options mean."""
    if arguments.task:
        return str(arguments.task)
    if arguments.repaint:
        return "repaint"
    return "cover" if arguments.source else "text2music"


def _duration(seconds: float) -> float:
    # The API reads -1 as "not given"; on the command line it is a mistake like any other.
    check_range("duration", seconds, MIN_DURATION, MAX_DURATION, "seconds")
    return seconds


def _seed(seed: int) -> int:
    if seed < 0:
        raise RequestError(f"seed {seed} is out of range; expected at least 0")
    return seed


def text_or_file(text: str) -> str:
    """The text itself, or with a leading @ the contents of the file it names."""
    if not text.startswith("@"):
        return text
    path = Path(text[1:]).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RequestError(f"cannot read lyrics from {path}: {reason}") from None


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
    from acestep.song.generation import extra_outputs

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


def _repaint_range(text: str) -> tuple[float, float | None]:
    start, colon, end = text.partition(":")
    try:
        bounds = float(start or 0), float(end) if end else None
    except ValueError:
        colon = ""
    if not colon:
        raise argparse.ArgumentTypeError(f"'{text}' is not a range; give START:END in seconds")
    if bounds[1] is not None and not 0 <= bounds[0] < bounds[1] < math.inf:
        raise argparse.ArgumentTypeError(
            f"'{text}' does not run forward; give START:END in seconds, START before END"
        )
    return bounds


def _add_music_options(parser: argparse.ArgumentParser) -> None:
    music = parser.add_argument_group("music")
    music.add_argument("--lyrics", default="", help="words with section tags, or @FILE")
    music.add_argument("--instrumental", action="store_true", help="no vocals")
    music.add_argument("--duration", type=float, help="seconds, 0.5 to 600 (default: 30)")
    music.add_argument("--bpm", type=int, help="beats per minute, 30 to 300")
    music.add_argument("--key", default="", help="for example 'C major' or 'F# minor'")
    music.add_argument("--time-signature", default="", help="2, 3, 4 or 6")
    music.add_argument(
        "--language", dest="vocal_language", default="unknown", help="of the vocals, e.g. en"
    )
    music.add_argument("--seed", type=int, help="the same seed makes the same song")
    music.add_argument("--batch", type=int, default=1, help="songs at once (default: 1)")


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("working from audio")
    source.add_argument("--task", choices=checkpoints.ALL_TASKS, help="what to do")
    source.add_argument("--source", type=Path, metavar="FILE", help="audio to work on")
    source.add_argument("--reference", type=Path, metavar="FILE", help="audio whose timbre to use")
    source.add_argument(
        "--repaint", type=_repaint_range, metavar="START:END", help="seconds of --source to renew"
    )
    source.add_argument(
        "--cover-strength", type=float, default=1.0, help="share of the source kept, 0 to 1"
    )
    source.add_argument("--track", help="for extract and lego, e.g. vocals")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model and device")
    model.add_argument(
        "--model",
        default="auto",
        help=f"auto, demo, {', '.join(checkpoints.SOURCES)}, a folder or a Hub id (default: auto)",
    )
    # The bare command has --device too; without SUPPRESS its value would be overwritten.
    add_device_option(parser, default=argparse.SUPPRESS)
    model.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto", help="precision")
    model.add_argument(
        "--offload", choices=OFFLOAD_CHOICES, default="none", help="keep idle modules on the host"
    )
    model.add_argument("--compile", action="store_true", help=COMPILE_HELP)
    model.add_argument("--flash-attention", action="store_true", help="use flash-attn (CUDA)")
    model.add_argument("--lora", type=Path, metavar="FILE", help="adapter made by acestep train")
    model.add_argument("--lora-scale", type=float, default=1.0, help="how much of it (default: 1)")
    add_planner_options(model)
    model.add_argument("--think", action="store_true", help="plan with the language model first")
    model.add_argument("--steps", type=int, default=8, help="diffusion steps (default: 8)")
    model.add_argument("--guidance-scale", type=float, default=7.0, help="for base and SFT models")
    model.add_argument("--shift", type=float, default=1.0, help="of the timestep schedule")
    model.add_argument("--infer-method", choices=("ode", "sde"), default="ode", help="sampler")


def add_format_options(output: Any, default: str | None = None) -> None:
    """Declare the options that say of which kind a song's file is."""
    output.add_argument(
        "--format", choices=FORMATS, default=default, help="kind of file (default: flac)"
    )
    output.add_argument(
        "--bit-depth", type=int, choices=BIT_DEPTHS,
        help="of flac (16, 24) and wav (16, 24, 32: float); default: 24 and 16",
    )  # fmt: skip
    output.add_argument(
        "--bitrate", type=int, metavar="KBIT/S",
        help="of mp3 (constant, up to 320), opus, m4a and aac; default: their own",
    )  # fmt: skip
    output.add_argument(
        "--loudness", type=float, metavar="LUFS",
        help="bring songs to it, e.g. -14, as far as peaks of -1 dBTP allow",
    )  # fmt: skip


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help=f"song.flac, or a name that ends in {' '.join('.' + kind for kind in FORMATS)}",
    )  # fmt: skip
    add_format_options(output)
    output.add_argument("--force", action="store_true", help="overwrite existing files")
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--quiet", action="store_true", help="print nothing but problems")
