"""Repeats the training of the built-in planner: `python -m acestep.training.planner --out FOLDER`.

A call is bounded by wall-clock time and leaves its state in the output folder, so that short
leases of a GPU add up: `--start` goes on from an earlier call's folder, with more material.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from acestep.demo import autoencoder, material
from acestep.demo.parts import WEIGHTS, load_parts, start_pipeline
from acestep.demo.planner_model import CODES, FILE, Planner, load, save
from acestep.demo.steps import TrainingStep
from acestep.demo.synth import Voices
from acestep.device import DevicePolicy, resolve
from acestep.training.planner import judge
from acestep.training.planner.loss import linear_cross_entropy
from acestep.training.planner.material import CODES_PER_SECOND, LENGTHS, SHARES, Chunk, Row, chunk
from acestep.training.planner.shelf import Batch, Shelf

WEIGHTS_FILE, MOMENTS_FILE, STATE_FILE = "weights.safetensors", "moments.safetensors", "state.json"
WARM_UP = 300
"""Steps in which the learning rate rises."""
DISTURBED = 0.06
"""Share of the codes read that are replaced by others."""
HELD_OUT = 7_000_001
"""Seed of the pieces for judging, in keys that training never uses."""

_SAMPLED = 1024
_AHEAD = 3
_SAVE_EVERY = 150.0
_MOST_CODES = 7_500_000
"""Of one call: its file of codes stays below 16 MB."""


@dataclass
class Stock:
    """Pieces as codes, and what is written about them.

    Attributes:
        codes: int values below 64,000 of each piece.
        rows: see `material.Row`.
    """

    codes: list[np.ndarray] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add(self, made: Chunk, codes: np.ndarray) -> None:
        """Put in a chunk with its pieces' codes `[pieces, codes]`."""
        first = len(self.codes)
        self.codes += list(codes)
        self.rows += [
            replace(row, piece=row.piece + first) if row.piece >= 0 else row for row in made.rows
        ]


@dataclass(frozen=True)
class Order:
    """What one chunk is made from; see `material.chunk`."""

    seed: int
    count: int
    seconds: float
    words: int
    unseen: bool = False

    def send(self, pool: Executor) -> Future[Chunk]:
        """Have it made by another process."""
        return pool.submit(chunk, self.seed, self.count, self.seconds, self.words, self.unseen)


def orders(first: int, size: int, words: int) -> Iterator[Order]:
    """Chunks without end, of all lengths in their shares, numbered from `first`.

    Args:
        first: number of the first chunk; a later call goes on counting.
        size: pieces of ten seconds in a chunk; fewer where they are longer.
        words: seed of the words.
    """
    number = first
    while True:
        # The share counts pieces, and a chunk of longer ones holds fewer.
        rounds = np.array(SHARES) * np.array([1.0, 3.0, 6.0, 12.0])
        draw = np.random.default_rng(number).random() * rounds.sum()
        which = int(np.searchsorted(np.cumsum(rounds), draw))
        seconds = LENGTHS[which]
        yield Order(number, max(1, size * LENGTHS[0] // seconds), float(seconds), words + number)
        number += 1


class _Run:
    """The planner that is trained, its material, and the record of both."""

    def __init__(self, arguments: argparse.Namespace, policy: DevicePolicy) -> None:
        self.arguments, self.policy = arguments, policy
        self.started = time.perf_counter()
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] = {"steps": 0, "trained": 0.0, "chunks": 0, "calls": 0}
        if arguments.start is not None:
            self.state = json.loads((arguments.start / STATE_FILE).read_text(encoding="utf-8"))
        self.planner = Planner().initialise(arguments.seed)
        if arguments.start is not None:
            self.planner.load_state_dict(load_file(arguments.start / WEIGHTS_FILE))
        self.planner.to(policy.device)
        self.step = TrainingStep(
            self.losses,
            list(self.planner.parameters()),
            policy,
            betas=(0.9, 0.98),
            decay=0.05,
            clip=1.0,
            forget=0.001,
            window=10,
        )
        if arguments.start is not None:
            self._resume(arguments.start)

    def elapsed(self) -> float:
        """Seconds since the start of this call."""
        return time.perf_counter() - self.started

    def note(self, phase: str, row: dict[str, Any]) -> None:
        """Print a line, and put it into the log."""
        line = {"phase": phase, "total": self.elapsed(), **row}
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(rounded) + "\n")
        print(json.dumps(rounded), flush=True)  # noqa: T201

    def losses(
        self,
        tokens: torch.Tensor,
        at: torch.Tensor,
        labels: torch.Tensor,
        sampled: torch.Tensor,
        *,
        coded: bool,
    ) -> dict[str, torch.Tensor]:
        """Cross entropy of what is to be written; see `Batch`.

        After text every code is wrong, and a sample of them speaks for all.
        """
        with self.policy.autocast("lm"):
            table = self.planner.table()
            hidden = self.planner(tokens, table).flatten(0, 1)[at]
            if coded:
                return {"codes": linear_cross_entropy(hidden, table, labels)}
            text = self.planner.shape.text
            some = torch.cat([table[:text], table[text:][sampled]])
            scores = functional.linear(hidden, some).float()
            weight = torch.zeros_like(scores[:1])
            weight[:, text:] = math.log(CODES / len(sampled))
            return {"text": functional.cross_entropy(scores + weight, labels)}

    def make(self, pool: Executor) -> tuple[Stock, Stock]:
        """Material for training until its time is over, and pieces for judging."""
        arguments = self.arguments
        words = 1_000_000 * self.state["calls"]
        source = orders(self.state["chunks"], arguments.chunk, words)
        held_out = Order(HELD_OUT, arguments.judged, float(LENGTHS[0]), HELD_OUT, unseen=True)
        judged = held_out.send(pool)
        queue = deque(next(source).send(pool) for _ in range(_AHEAD * arguments.workers))
        earlier, old = self._earlier(words), []
        coder, held, stock = Coder(self.policy), Stock(), Stock()
        made = judged.result()
        held.add(made, coder(made))
        self.note("making", {"held_out": len(held.codes)})
        numbers: list[int] = []
        noted = self.elapsed()
        size = 0
        while not numbers or (self.elapsed() < arguments.material and size < _MOST_CODES):
            made = queue.popleft().result()
            queue.append(next(source).send(pool))
            # The processes have time to write about earlier pieces too.
            old += [(order.send(pool), codes) for order, codes in itertools.islice(earlier, 2)]
            codes = coder(made)
            size += codes.size
            stock.add(made, codes)
            numbers.append(self.state["chunks"])
            self.state["chunks"] += 1
            if self.elapsed() - noted > 20:
                noted = self.elapsed()
                ready = sum(future.done() for future in queue)
                self.note("making", {"pieces": len(stock.codes), "ready": ready})
        for future in queue:
            future.cancel()
        self._keep(numbers, stock.codes)
        old += [(order.send(pool), codes) for order, codes in earlier]
        for written, stored in old:
            stock.add(written.result(), stored)
        total = sum(len(piece) for piece in stock.codes)
        self.note("made", {"pieces": len(stock.codes), "codes": total, "rows": len(stock.rows)})
        return stock, held

    def train(self, stock: Stock, held: Stock) -> None:
        """Train until the call's time is nearly over, then judge and save."""
        arguments, policy = self.arguments, self.policy
        text = self.planner.shape.text
        shelf = Shelf(stock.codes, stock.rows, text, policy.device, arguments.fewest)
        judged = Shelf(held.codes, held.rows, text, policy.device)
        self.note("shelf", dict(shelf.shapes))
        stock.rows.clear()
        calls = self.state["calls"]
        host = np.random.default_rng(arguments.seed + 1000 * calls)
        random = torch.Generator(policy.device).manual_seed(arguments.seed + 1000 * calls)
        before, began, saved, number = self.state["trained"], self.elapsed(), self.elapsed(), 0
        while self.elapsed() < arguments.seconds - arguments.reserve or not number:
            if number % 10 == 0:
                policy.synchronize()
            self.state["trained"] = before + self.elapsed() - began
            drawn = shelf.draw(host, random, arguments.tokens, disturbed=DISTURBED)
            self._take(drawn, random)
            number += 1
            if number % arguments.report_every == 0:
                self.note("training", {"step": self.step.number, **self.step.report(),
                                       "rate": self._rate()})  # fmt: skip
            if self.elapsed() - saved > _SAVE_EVERY:
                saved = self.elapsed()
                self.save()
        self.state["calls"] += 1
        self.save()
        with torch.no_grad():
            for place, name in ((shelf, "seen"), (judged, "unseen")):
                row = judge.code_figures(
                    self.averaged(), place, policy, host, random, arguments.tokens
                )
                self.note("codes", {"of": name, **row})
        figures = judge.plan_figures(self.averaged(), policy, arguments.prompts)
        for name, value in figures.items():
            self.note("plans", {"field": name, **value})

    def averaged(self) -> Planner:
        """The planner with the running average of its weights."""
        planner = Planner(self.planner.shape).to(self.policy.device)
        for own, value in zip(planner.parameters(), self.step.averages(), strict=True):
            own.data.copy_(value)
        return planner.eval().requires_grad_(False)

    def save(self) -> None:
        """Write all that a later call goes on from, and the weights to ship."""
        save(self.averaged(), self.out / FILE.name)
        save(self.planner, self.out / WEIGHTS_FILE, torch.float32)
        names = [name for name, _ in self.planner.named_parameters()]
        moments = {}
        for name, (mean, square) in zip(names, self.step.moments(), strict=True):
            moments[f"mean.{name}"] = mean.to("cpu", torch.bfloat16)
            # Its root has the range that half precision is made for.
            moments[f"root.{name}"] = square.sqrt().to("cpu", torch.bfloat16)
        save_file(moments, self.out / MOMENTS_FILE)
        self.state["steps"] = self.step.number
        (self.out / STATE_FILE).write_text(json.dumps(self.state), encoding="utf-8")

    def _take(self, batch: Batch, random: torch.Generator) -> None:
        sampled = torch.randint(CODES, (_SAMPLED,), generator=random, device=self.policy.device)
        self.step(self._rate(), batch.tokens, batch.at, batch.labels, sampled, coded=batch.coded)

    def _rate(self) -> float:
        """Rises at first, then falls along a cosine over the training time of all calls."""
        done = min(1.0, self.state["trained"] / self.arguments.of)
        warm = min(1.0, (self.step.number + 1) / WARM_UP)
        fall = 0.5 + 0.5 * math.cos(math.pi * done)
        rate: float = self.arguments.rate * warm * (0.02 + 0.98 * fall)
        return rate

    def _resume(self, folder: Path) -> None:
        stored = load_file(folder / MOMENTS_FILE)
        names = [name for name, _ in self.planner.named_parameters()]
        moments = [
            (stored[f"mean.{name}"].float(), stored[f"root.{name}"].float().square())
            for name in names
        ]
        averages = list(load(folder / FILE.name).parameters())
        self.step.resume(self.state["steps"], moments, averages)

    def _keep(self, numbers: list[int], codes: list[np.ndarray]) -> None:
        """Write a call's codes beside its state."""
        flat = np.concatenate(codes).astype(np.uint16)
        tensors = {
            "codes": torch.from_numpy(flat.view(np.int16)),
            "chunks": torch.tensor(numbers),
        }
        save_file(tensors, self.out / f"codes-{self.state['calls']}.safetensors")

    def _earlier(self, words: int) -> Iterator[tuple[Order, np.ndarray]]:
        """Chunks of earlier calls: their codes are stored, and their notes follow from seeds."""
        if self.arguments.start is None:
            return
        for file in sorted(self.arguments.start.glob("codes-*.safetensors")):
            stored = load_file(file)
            flat = stored["codes"].numpy().view(np.uint16).astype(np.int64)
            place = 0
            for number in stored["chunks"].tolist():
                order = next(orders(number, self.arguments.chunk, words))
                size = order.count * int(order.seconds) * CODES_PER_SECOND
                yield order, flat[place : place + size].reshape(order.count, -1)
                place += size


class Coder:
    """Turns pieces into the codes that the built-in checkpoint's own encoder makes of them."""

    def __init__(self, policy: DevicePolicy) -> None:
        self.policy = policy
        self.voices = Voices(policy.device)
        self.pipeline = start_pipeline(WEIGHTS)
        load_parts(self.pipeline, WEIGHTS)
        for module in (self.pipeline.vae, self.pipeline.audio_tokenizer):
            module.to(policy.device).eval().requires_grad_(False)
        self.silence = self.pipeline.condition_encoder.silence_latent.to(policy.device)
        if policy.is_accelerator:
            autoencoder.fuse_activations(self.pipeline.vae)

    def __call__(self, made: Chunk) -> np.ndarray:
        """Codes `[pieces, seconds * 5]` of a chunk's pieces."""
        latents = material.latents_of(made.songs, self.voices, self.pipeline.vae, self.policy)
        with torch.no_grad():
            _, codes = self.pipeline.audio_tokenizer.tokenize(latents.float(), self.silence)
        numbers: np.ndarray = codes.flatten(1).cpu().numpy()
        return numbers


def main(argv: Sequence[str] | None = None) -> None:
    """Make material, train, judge."""
    arguments = _parser().parse_args(argv)
    policy = resolve(arguments.device)
    torch.set_float32_matmul_precision("high")
    # Spawned before anything else: a process that has used a GPU must not be forked.
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        run = _Run(arguments, policy)
        stock, held = run.make(pool)
    run.train(stock, held)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the built-in planner.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and log")
    parser.add_argument("--start", type=Path, help="folder of an earlier call to go on from")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=500, help="of the whole call")
    parser.add_argument("--material", type=float, default=220, help="part of it to make pieces in")
    parser.add_argument("--reserve", type=float, default=35, help="part of it to judge in")
    parser.add_argument("--of", type=float, default=500, help="seconds of training in all calls")
    parser.add_argument("--workers", type=int, default=14, help="processes that write")
    parser.add_argument("--chunk", type=int, default=64, help="pieces that are made at once")
    parser.add_argument("--tokens", type=int, default=32768, help="in a step, padding included")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="highest learning rate")
    parser.add_argument("--fewest", type=int, default=400, help="rows of a shape, or none")
    parser.add_argument("--judged", type=int, default=128, help="pieces kept for judging")
    parser.add_argument("--prompts", type=int, default=128, help="captions to judge plans by")
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    return parser
