"""The options that say of which kind songs' files are, and how loud."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.errors import RequestError
from acestep.song.formats import BIT_DEPTHS, FORMATS, file_format

if TYPE_CHECKING:
    from acestep.song.params import GenerationConfig


def add_options(output: Any, default: str | None = None) -> None:
    """Declare them, in a parser or one of its groups."""
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


def name(output: Path | None, kind: str | None) -> Path:
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


def config(arguments: argparse.Namespace, path: Path, songs: int) -> GenerationConfig:
    """How many songs, of which kind.

    Raises:
        RequestError: no kind of file is like that, or no song so loud.
    """
    from acestep.song.params import GenerationConfig

    made = GenerationConfig(
        batch_size=songs,
        fit=arguments.fit,
        use_random_seed=False,
        audio_format=file_format(path),
        audio_bit_depth=arguments.bit_depth,
        audio_bitrate=arguments.bitrate,
        audio_loudness=arguments.loudness,
    )
    made.encoding()
    made.target_loudness()
    return made
