"""Judges the built-in planner: `python -m acestep.bench.plans`.

Its metadata are held against what captions say, and songs that it planned against songs of
the same captions and seeds without it, by the judges of `bench.evaluate`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from acestep.bench.evaluate import SECONDS, asked, fit_classifier, judged, need_judges
from acestep.demo.captions import Prompt, describe
from acestep.demo.music import KEY_NAMES, MOODS, Song, compose
from acestep.device import DevicePolicy, resolve
from acestep.handler import AceStepHandler
from acestep.inference import understand_music
from acestep.llm_inference import LLMHandler
from acestep.song.planning import plan
from acestep.song.request import Planning, Request
from acestep.training.planner.judge import agreement
from acestep.training.planner.wording import OTHER_NAMES, Chooser, Plan, ask, varied

_SEEDS = {"captions": 9101, "songs": 9102}
_SINGLE = {other: name for name, other in OTHER_NAMES.items()}
_VOICES = "(electric piano|synth lead|piano|guitar|organ|strings|flute|trumpet|bells|marimba)"

Figures = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures as JSON, each part when it is there."""
    parser = argparse.ArgumentParser(description="Judge the built-in planner.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--captions", type=int, default=200, help="to hold metadata against")
    parser.add_argument("--songs", type=int, default=100, help="of each kind; 0 makes none")
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="number of the first song, to judge in several processes",
    )
    parser.add_argument("--examples", type=int, default=20, help="of each instrument")
    parser.add_argument("--lm-model", default="demo")
    arguments = parser.parse_args(argv)
    need_judges(parser)
    policy = resolve(arguments.device)
    planner = LLMHandler()
    planner.load(arguments.lm_model, policy)
    if arguments.captions:
        _print("metadata", metadata(planner, arguments.captions))
    if arguments.songs:
        numbers = range(arguments.first, arguments.first + arguments.songs)
        for name, row in songs(planner, policy, numbers, arguments.examples):
            _print(name, row)


def metadata(planner: LLMHandler, count: int) -> Figures:
    """Agreement of blocks with captions of pieces in keys that training never used.

    The planner writes as it does for a song: with its usual temperature, guidance and grammar.
    """
    choose = Chooser(np.random.default_rng(_SEEDS["captions"]))
    plans = [
        varied(Plan.of(compose(choose.random, 1.0, unseen=True), choose.number(10, 60)), choose)
        for _ in range(count)
    ]
    told = [ask(one, choose) for one in plans]
    settings = Planning()
    made = []
    for seed, one in enumerate(told):
        answer = planner.generate_with_stop_condition(
            one.caption,
            "",
            "dit",
            temperature=settings.temperature,
            cfg_scale=settings.guidance_scale,
            top_p=settings.top_p,
            seeds=[seed],
        )
        made.append(dict(answer["metadata"]))
    return dict(agreement(plans, told, made))


def songs(
    planner: LLMHandler, policy: DevicePolicy, numbers: range, examples: int
) -> Iterator[tuple[str, Figures]]:
    """Songs judged with and without the planner, as (what was judged, figures).

    Captions name instrument, key and tempo. In `fields` they also stand in the request's own
    fields; in `caption` the request has no more than the caption, as typed by a user. A song's
    number is its seed.
    """
    handler = AceStepHandler()
    handler.load("demo", policy)
    random = np.random.default_rng(_SEEDS["songs"])
    pieces, prompts = [], []
    for _ in range(numbers.stop):
        pieces.append(compose(random, SECONDS, unseen=True))
        prompts.append(named(pieces[-1], random))
    pieces = [pieces[number] for number in numbers]
    classifier = fit_classifier(examples)
    for kind in ("fields", "caption"):
        requests = [_request(prompts[number], number, kind) for number in numbers]
        planned = [planned_by(planner, request) for request in requests]
        bare = [replace(request, song_codes=()) for request in planned]
        heard = [
            describes(planner, r.song_codes[0], p) for r, p in zip(planned, pieces, strict=True)
        ]
        described = {name: float(np.mean([row[name] for row in heard])) for name in heard[0]}
        yield f"{kind}: codes described", described
        for name, group in (("unplanned", requests), ("planned", planned), ("no codes", bare)):
            yield f"{kind}: {name}", judged(pieces, _made(handler, group), classifier)


def named(piece: Song, random: np.random.Generator) -> Prompt:
    """A caption that names instrument, key and tempo, with the fields beside it."""
    prompt = describe(piece, random, complete=True)
    caption = prompt.caption
    if f"{piece.bpm} bpm" not in caption:
        caption += f", {piece.bpm} bpm"
    if f"in {piece.keyscale}" not in caption:
        caption += f", in {piece.keyscale}"
    return replace(prompt, caption=caption)


def planned_by(planner: LLMHandler, request: Request) -> Request:
    """The request as `--think` hands it on."""
    return plan(planner, request)


def describes(planner: LLMHandler, codes: str, piece: Song) -> dict[str, bool]:
    """Whether the planner, told nothing but codes, hears the piece's key, tempo and so on in them."""
    told = understand_music(planner, codes, temperature=0.0)
    instrument = re.findall(_VOICES, told.caption)
    return {
        "key": single_name(told.keyscale) == piece.keyscale,
        "tempo": told.bpm is not None and abs(told.bpm / piece.bpm - 1) < 0.04,
        "metre": told.timesignature == str(piece.metre),
        "instrument": instrument[-1:] == [piece.instrument],
        "mood": any(word == piece.mood for word in told.caption.split() if word in MOODS),
    }


def single_name(keyscale: str) -> str:
    """A key by its usual name: `C# major` for `Db major`."""
    tonic, _, mode = keyscale.partition(" ")
    tonic = _SINGLE.get(tonic, tonic)
    return f"{tonic} {mode}" if tonic in KEY_NAMES else keyscale


def _request(prompt: Prompt, seed: int, kind: str) -> Request:
    if kind == "fields":
        return asked(prompt, seed)
    return Request(prompt.caption, (seed,), duration=SECONDS)


def _made(handler: AceStepHandler, requests: Sequence[Request]) -> torch.Tensor:
    """The songs' audio `[requests, 2, samples]`."""
    made = [handler.generate(request).songs[0].audio for request in requests]
    return torch.stack([torch.as_tensor(audio) for audio in made])


def _print(name: str, row: Figures) -> None:
    print(json.dumps({name: row}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
