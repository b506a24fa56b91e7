"""What `generate` and `align` share: lyric files, score and picture beside a song."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.alignment.lyric_files import LyricLine
from acestep.console.terminal import result, say
from acestep.errors import RequestError

if TYPE_CHECKING:
    from acestep.checkpoint.kinds import Checkpoint
    from acestep.handler import AceStepHandler

WORDLESS = (
    "acestep: warning: the built-in demo does not sing: its lyric times and scores mean nothing"
)
NO_TIMES = (
    "acestep: warning: {}: the attention shows no clear times, all lines start together; the "
    "lyrics may not be sung there"
)
LRC_BY = "acestep"


@dataclass(frozen=True)
class LyricOptions:
    """What was asked for about the lyrics of a song.

    Attributes:
        lrc: `lines`, `words` or None.
        lrc_ends: mark where lines end.
        srt, vtt, plot: write that file.
        score: print how well the lyrics are sung.
        keep_tags: keep section marks such as `[verse]` in the files.
        heads: layer to heads, in place of the checkpoint's table.
        force: replace files that exist.
    """

    lrc: str | None
    lrc_ends: bool
    srt: bool
    vtt: bool
    plot: bool
    score: bool
    keep_tags: bool
    heads: dict[int, list[int]] | None
    force: bool = False

    @property
    def suffixes(self) -> list[str]:
        """Endings of the files to write."""
        asked = {".lrc": self.lrc, ".srt": self.srt, ".vtt": self.vtt, ".png": self.plot}
        return [suffix for suffix, wanted in asked.items() if wanted]

    @property
    def any(self) -> bool:
        """Whether anything was asked for."""
        return bool(self.suffixes) or self.score


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `LyricOptions` holds."""
    lyrics = parser.add_argument_group("lyrics in time, beside the song")
    lyrics.add_argument(
        "--lrc",
        nargs="?",
        const="lines",
        choices=("lines", "words"),
        help="write an .lrc file; with 'words' each word has its time",
    )
    lyrics.add_argument("--lrc-ends", action="store_true", help="also mark where lines end")
    lyrics.add_argument("--srt", action="store_true", help="write an .srt file")
    lyrics.add_argument("--vtt", action="store_true", help="write a .vtt file")
    lyrics.add_argument("--plot", action="store_true", help="write a .png of the alignment")
    lyrics.add_argument("--score", action="store_true", help="print how well they are sung")
    lyrics.add_argument("--keep-tags", action="store_true", help="keep [verse] and the like")
    lyrics.add_argument(
        "--lyric-heads",
        metavar="'LAYER:HEAD,HEAD …'",
        help="attention heads to read, for checkpoints without a table of their own",
    )


def lyric_options(arguments: argparse.Namespace) -> LyricOptions:
    """The options given.

    Raises:
        RequestError: `--lyric-heads` is not of its form.
    """
    heads = None
    if arguments.lyric_heads is not None:
        from acestep.alignment.heads import parse_heads

        heads = parse_heads(arguments.lyric_heads)
    return LyricOptions(
        lrc=arguments.lrc or ("lines" if arguments.lrc_ends else None),
        lrc_ends=arguments.lrc_ends,
        srt=arguments.srt,
        vtt=arguments.vtt,
        plot=arguments.plot,
        score=arguments.score,
        keep_tags=arguments.keep_tags,
        heads=heads,
        force=arguments.force,
    )


def check(
    options: LyricOptions, lyrics: str, checkpoint: Checkpoint, songs: Sequence[Path], force: bool
) -> None:
    """Refuse, before any work is done, what would fail at its end.

    Raises:
        RequestError: no words to sing, or a file exists.
        CheckpointError: the checkpoint has no table of heads and none was given.
    """
    if not options.any:
        return
    if all(LyricLine(line, 0, 0).is_tag for line in lyrics.splitlines() if line.strip()):
        found = "hold only section tags" if lyrics.strip() else "are empty"
        raise RequestError(f"there is nothing to align: the lyrics {found}; give --lyrics")
    from acestep.alignment.heads import alignment_heads

    alignment_heads(checkpoint.name, options.heads)
    for song in songs:
        for file in (song.with_suffix(suffix) for suffix in options.suffixes):
            if file.exists() and not force:
                raise RequestError(f"{file} exists; overwrite it with --force")
    if checkpoint.builtin:
        say(WORDLESS)


def write(
    handler: AceStepHandler,
    outputs: Mapping[str, Any],
    number: int,
    options: LyricOptions,
    song: Path,
) -> dict[str, Any]:
    """Align one song and write what was asked for beside it.

    Args:
        handler: with the checkpoint loaded.
        outputs: of a generation, or of `condition_on_lyrics`.
        number: which song of them.
        options: what to write.
        song: the song's path; its name is the title, its ending is replaced.

    Returns:
        `lyric_files`, the paths written, and with `--score` `lyric_score`, a dict.

    Raises:
        RequestError: heads that do not exist, or a file that cannot be written.
        GenerationError: memory ran out.
    """
    from acestep.alignment.service import SongInputs, song_inputs

    inputs = SongInputs(**song_inputs(outputs, number), custom_layers_config=options.heads)
    seconds = float(outputs["duration"])
    record: dict[str, Any] = {"lyric_files": []}
    if options.suffixes:
        timed = handler.align_lyrics(inputs, return_matrices=options.plot)
        starts = [sentence.start for sentence in timed["sentence_timestamps"]]
        if len(starts) > 1 and len(set(starts)) == 1:
            say(NO_TIMES.format(song))
        for suffix, text in _texts(timed["sentence_timestamps"], options, song, seconds).items():
            file = song.with_suffix(suffix)
            record["lyric_files"].append(_write_text(file, text, options.force))
        if options.plot:
            from acestep.alignment.plot import draw_alignment, save_plot

            image = draw_alignment(
                timed["energy_matrix"],
                timed["path_coords"],
                timed["sentence_timestamps"],
                seconds,
                song.name,
            )
            save_plot(song.with_suffix(".png"), image, overwrite=options.force)
            record["lyric_files"].append(str(song.with_suffix(".png")))
    if options.score:
        record["lyric_score"] = handler.score_lyrics(inputs)
    return record


def print_record(song: Path, record: dict[str, Any]) -> None:
    """A line for the files of a song, and one for its score."""
    if record["lyric_files"]:
        result(f"{song}: lyrics in time: {', '.join(record['lyric_files'])}")
    if score := record.get("lyric_score"):
        result(
            f"{song}: lyric score {score['lyrics_score']:.4f} (coverage {score['coverage']:.3f}, "
            f"monotonicity {score['monotonicity']:.3f}, confidence {score['confidence']:.3f}; "
            f"from noise {score['lm_score']:.4f})"
        )


def _texts(
    sentences: Sequence[Any], options: LyricOptions, song: Path, seconds: float
) -> dict[str, str]:
    """The text files asked for, by ending."""
    from acestep.alignment import lyric_files
    from acestep.alignment.words import lyric_lines

    lines, keep = lyric_lines(sentences), options.keep_tags
    texts = {}
    if options.lrc:
        texts[".lrc"] = lyric_files.lrc(
            lines,
            title=song.stem,
            by=LRC_BY,
            length=seconds,
            end_times=options.lrc_ends,
            words=options.lrc == "words",
            keep_tags=keep,
        )
    if options.srt:
        texts[".srt"] = lyric_files.srt(lines, keep_tags=keep)
    if options.vtt:
        texts[".vtt"] = lyric_files.vtt(lines, words=options.lrc == "words", keep_tags=keep)
    return texts


def _write_text(path: Path, text: str, force: bool) -> str:
    from acestep.song.audio_files import replacing

    with replacing(path, overwrite=force) as part:
        part.write_text(text, encoding="utf-8")
    return str(path)
