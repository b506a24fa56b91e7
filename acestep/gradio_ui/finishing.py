"""From a song to what a visitor gets: lyrics in time, score and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.errors import GenerationError, RequestError
from acestep.gradio_ui import pictures
from acestep.gradio_ui.store import StoredSong
from acestep.song import formats

if TYPE_CHECKING:
    from acestep.gradio_ui.song_request import SongRequest
    from acestep.handler import AceStepHandler
    from acestep.inference import GenerationResult

WORDLESS = "the built-in model cannot sing: the times of the lyrics mean nothing"
NO_HEARING = (
    "the built-in model cannot sing, so it hears no words either; load another model in the "
    "service panel"
)

_RATE = 48000

Lines = list[tuple[float, float, str]]


@dataclass(frozen=True)
class Sung:
    """What is known of a song's lyrics."""

    lines: Lines
    score: dict[str, float] | None = None


def finish(
    handler: AceStepHandler, made: GenerationResult, number: int, folder: Path, saved: Path
) -> StoredSong:
    """Gather all files of one song in a folder.

    Args:
        handler: that made it, for the lyrics' times.
        made: the generation.
        number: which song of it.
        folder: where the files go, under the names of `store.FILES`.
        saved: its audio file, which is moved there with its parameters.

    Returns:
        The record, without id, title and form values.
    """
    from acestep.alignment.service import song_inputs

    audio = made.audios[number]
    name = f"song{saved.suffix}"
    os.rename(saved, folder / name)
    saved.with_suffix(".json").unlink()
    samples = audio["tensor"].numpy()
    seconds = samples.shape[-1] / audio["sample_rate"]
    sung = Sung([])
    if str(audio["params"].get("lyrics", "")).strip():
        try:
            sung = _sung(handler, song_inputs(made.extra_outputs, number), folder, seconds)
        except (RequestError, GenerationError):
            # A checkpoint that cannot tell has no times; the song is there all the same.
            sung = Sung([])
    song = _record(samples, audio["sample_rate"], folder, name, audio["params"], sung)
    wordless = handler.checkpoint is not None and handler.checkpoint.builtin
    warnings = list(made.extra_outputs.get("warnings", ()))
    warnings += [WORDLESS] if wordless and sung.lines else []
    return replace(song, seed=audio["seed"], warnings=warnings, wordless=wordless)


def finish_recording(
    handler: AceStepHandler, recording: Path, request: SongRequest, folder: Path
) -> StoredSong:
    """Time and score the lyrics of a recording, and gather its files in a folder.

    Args:
        handler: with a checkpoint that sings.
        recording: a WAV file at 48 kHz.
        request: with its lyrics, and their language.
        folder: where the files go.

    Raises:
        RequestError: the checkpoint does not sing, or no heads of it are known to read from.
        GenerationError: memory ran out.
    """
    from acestep.alignment.service import ANY_SONG, song_inputs
    from acestep.song import audio_files

    if handler.checkpoint is not None and handler.checkpoint.builtin:
        raise RequestError(NO_HEARING)
    sound = audio_files.read(recording)
    caption = request.prompt.strip() or ANY_SONG
    heard = handler.condition_on_lyrics(sound, request.lyrics, request.language, caption)
    seconds = sound.shape[-1] / _RATE
    sung = _sung(handler, song_inputs(heard, 0), folder, seconds)
    audio_files.encode(folder / "song.flac", sound, _RATE, formats.encoding("flac"))
    told = {
        "task": "align",
        "caption": request.prompt,
        "lyrics": request.lyrics,
        "language": request.language,
        "seconds": round(seconds, 3),
        "checkpoint": handler.checkpoint.name if handler.checkpoint else None,
        "device": handler.policy.name,
    }
    song = _record(sound.numpy(), _RATE, folder, "song.flac", told, sung)
    return replace(song, kind="align")


def _record(
    samples: Any, rate: int, folder: Path, audio: str, told: dict[str, Any], sung: Sung
) -> StoredSong:
    """Pictures and parameters, and the record that names them."""
    picture = pictures.spectrogram(samples, rate)
    pictures.save_png(picture, folder / "spectrogram.png")
    text = json.dumps({"file": audio, **told}, ensure_ascii=False, indent=2, default=str)
    (folder / "song.json").write_text(text + "\n", encoding="utf-8")
    return StoredSong(
        id="",
        title="",
        created=0.0,
        seconds=samples.shape[-1] / rate,
        seed=-1,
        audio=audio,
        made=told,
        peaks=pictures.peaks(samples),
        lines=sung.lines,
        score=sung.score,
        files=sorted(file.name for file in folder.iterdir()),
    )


def _sung(handler: AceStepHandler, inputs: Mapping[str, Any], folder: Path, seconds: float) -> Sung:
    """Lines with their times, in a file too, and of a checkpoint that sings their score.

    Raises:
        RequestError: the checkpoint cannot tell.
        GenerationError: memory ran out.
    """
    from acestep.alignment import lyric_files
    from acestep.alignment.service import SongInputs
    from acestep.alignment.words import lyric_lines

    song = SongInputs(**inputs)
    timed = handler.align_lyrics(song, return_matrices=True)
    lines = lyric_lines(timed["sentence_timestamps"])
    text = lyric_files.lrc(lines, title=folder.name, by="acestep", length=seconds)
    (folder / "song.lrc").write_text(text, encoding="utf-8")
    _draw(timed, seconds, folder / "alignment.png")
    shown = [(line.start, line.end, line.text) for line in lines if line.text.strip()]
    if handler.checkpoint is not None and handler.checkpoint.builtin:
        return Sung(shown)
    figures = handler.score_lyrics(song)
    return Sung(shown, {name: float(figure) for name, figure in figures.items()})


def _draw(timed: dict[str, Any], seconds: float, path: Path) -> None:
    from acestep.alignment.plot import draw_alignment

    sentences = timed["sentence_timestamps"]
    image = draw_alignment(timed["energy_matrix"], timed["path_coords"], sentences, seconds)
    pictures.save_png(image, path)
