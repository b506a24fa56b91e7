"""Clips of a timbre that the built-in checkpoint never heard, and a judge of what was learned.

`python -m acestep.bench.adapt clips FOLDER` writes twenty of them, each with its caption;
`acestep train --data FOLDER --lora 16 -o FILE` learns an adapter; and
`python -m acestep.bench.adapt judge CHECKPOINT FILE` prints how often a classifier of timbres
hears the newcomer in songs made with the adapter, and without it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acestep.bench.evaluate import SECONDS, asked, fit_classifier, mono_of, need_judges, timbre
from acestep.demo.captions import describe
from acestep.demo.music import INSTRUMENTS, NEWCOMER, compose
from acestep.demo.synth import SAMPLE_RATE, Voices
from acestep.device import resolve
from acestep.errors import AceStepError
from acestep.handler import AceStepHandler
from acestep.song import audio_files

_SEED = 9003


def main(argv: Sequence[str] | None = None) -> None:
    """Write the clips, or print the shares as JSON."""
    parser = argparse.ArgumentParser(description="Teach the built-in checkpoint a new timbre.")
    commands = parser.add_subparsers(dest="command", required=True)
    clips = commands.add_parser("clips", help="write clips of the new timbre")
    clips.add_argument("folder", type=Path)
    clips.add_argument("--count", type=int, default=20)
    judge = commands.add_parser("judge", help="classify songs with the adapter and without")
    judge.add_argument("checkpoint")
    judge.add_argument("adapter", type=Path)
    judge.add_argument("--device", default="auto")
    judge.add_argument("--songs", type=int, default=20)
    judge.add_argument("--examples", type=int, default=20, help="of each timbre")
    arguments = parser.parse_args(argv)
    if arguments.command == "clips":
        write_clips(arguments.folder, arguments.count)
        return
    need_judges(parser)
    handler = AceStepHandler()
    try:
        handler.load(arguments.checkpoint, resolve(arguments.device))
        # Tried before the long work, and taken off again: the first songs are made without it.
        handler.load_lora(arguments.adapter, 1.0)
    except AceStepError as error:
        parser.error(str(error))
    handler.unload_lora()
    classifier = fit_classifier(arguments.examples, (*INSTRUMENTS, NEWCOMER))
    shares = {"without": heard(handler, classifier, arguments.songs)}
    handler.load_lora(arguments.adapter, 1.0)
    shares["with"] = heard(handler, classifier, arguments.songs)
    print(json.dumps(shares, indent=2))  # noqa: T201


def write_clips(folder: Path, count: int) -> None:
    """Write clips of ten seconds as FLAC, each with a caption and its fields as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    random, voices = np.random.default_rng(_SEED), Voices()
    for number in range(count):
        song = compose(random, SECONDS, instrument=NEWCOMER)
        prompt = describe(song, random, complete=True)
        file = folder / f"{number:02d}.flac"
        audio_files.write(file, voices.render([song])[0], SAMPLE_RATE)
        fields = {
            "caption": prompt.caption,
            "bpm": song.bpm,
            "key": song.keyscale,
            "timesignature": str(song.metre),
        }
        file.with_suffix(".json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


def heard(handler: AceStepHandler, classifier: Any, songs: int) -> float:
    """The share of songs, asked for with the new timbre, in which a classifier hears it."""
    random = np.random.default_rng(_SEED + 1)
    found = []
    for seed in range(songs):
        song = compose(random, SECONDS, instrument=NEWCOMER)
        prompt = describe(song, random, complete=True)
        audio = torch.as_tensor(handler.generate(asked(prompt, seed)).songs[0].audio)
        found.append(classifier.predict(timbre(mono_of(audio))[None])[0] == NEWCOMER)
    return float(np.mean(found))


if __name__ == "__main__":
    main()
