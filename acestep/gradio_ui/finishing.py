"""From a generated song to what a visitor gets: lyrics in time, score and pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.gradio_ui import pictures
from acestep.gradio_ui.store import StoredSong

if TYPE_CHECKING:
    from acestep.handler import AceStepHandler
    from acestep.inference import GenerationResult


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
    audio = made.audios[number]
    name = f"song{saved.suffix}"
    os.rename(saved, folder / name)
    os.rename(saved.with_suffix(".json"), folder / "song.json")
    samples = audio["tensor"].numpy()
    pictures.save_png(
        pictures.spectrogram(samples, audio["sample_rate"]), folder / "spectrogram.png"
    )
    seconds = samples.shape[-1] / audio["sample_rate"]
    lines, score = _lyrics(handler, made, number, folder, seconds)
    return StoredSong(
        id="",
        title="",
        created=0.0,
        seconds=seconds,
        seed=audio["seed"],
        audio=name,
        made=audio["params"],
        peaks=pictures.peaks(samples),
        lines=lines,
        score=score,
        warnings=list(made.extra_outputs.get("warnings", ())),
        files=sorted(file.name for file in folder.iterdir()),
    )


def _lyrics(
    handler: AceStepHandler, made: GenerationResult, number: int, folder: Path, seconds: float
) -> tuple[list[tuple[float, float, str]], dict[str, float] | None]:
    """Lines with their times and the score; a checkpoint that cannot tell gives neither."""
    from acestep.alignment import lyric_files
    from acestep.alignment.service import song_inputs
    from acestep.alignment.words import lyric_lines

    if not str(made.audios[number]["params"].get("lyrics", "")).strip():
        return [], None
    inputs = song_inputs(made.extra_outputs, number)
    timed = handler.get_lyric_timestamp(**inputs, return_matrices=True)
    if not timed["success"]:
        return [], None
    lines = lyric_lines(timed["sentence_timestamps"])
    text = lyric_files.lrc(lines, title=folder.name, by="acestep", length=seconds)
    (folder / "song.lrc").write_text(text, encoding="utf-8")
    _draw(timed, seconds, folder / "alignment.png")
    score: dict[str, Any] = handler.get_lyric_score(**inputs)
    figures = {k: float(v) for k, v in score.items() if isinstance(v, float | int)}
    figures.pop("success", None)
    shown = [(line.start, line.end, line.text) for line in lines if line.text.strip()]
    return shown, figures if score["success"] else None


def _draw(timed: dict[str, Any], seconds: float, path: Path) -> None:
    from acestep.alignment.plot import draw_alignment

    sentences = timed["sentence_timestamps"]
    image = draw_alignment(timed["energy_matrix"], timed["path_coords"], sentences, seconds)
    pictures.save_png(image, path)
