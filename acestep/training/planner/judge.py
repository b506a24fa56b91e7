"""Figures of a planner in training: how well it foretells codes, and keeps to what it is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from acestep.demo.music import compose
from acestep.demo.planner_model import LEVELS, Planner
from acestep.device import DevicePolicy
from acestep.lm.cot import CLOSE, FIELDS, parse
from acestep.training.planner.material import Scribe, text_tokenizer
from acestep.training.planner.shelf import IGNORED, Shelf
from acestep.training.planner.wording import Asked, Chooser, Plan, ask, varied, writable

_PROMPTS_SEED = 8_000_001
_LONGEST = 224
"""Tokens of a block."""
_BATCHES = 8

Figures = dict[str, float]


def code_figures(
    planner: Planner,
    shelf: Shelf,
    policy: DevicePolicy,
    host: np.random.Generator,
    random: torch.Generator,
    tokens: int,
) -> Figures:
    """How well codes are foretold from what stands before them.

    Args:
        tokens: in each of a few batches.

    Returns:
        nats of a code, share of codes that are the likeliest, mean share of their digits.
    """
    sums: dict[str, float] = defaultdict(float)
    text = planner.shape.text
    for _ in range(_BATCHES):
        batch = shelf.draw(host, random, tokens, family="codes")
        with policy.autocast("lm"):
            table = planner.table()
            hidden = planner(batch.tokens, table).flatten(0, 1)[batch.at]
            known = (batch.labels != IGNORED) & (batch.labels >= text)
            hidden, labels = hidden[known], batch.labels[known]
            for some, right in zip(
                torch.split(hidden, 4096), torch.split(labels, 4096), strict=True
            ):
                logits = functional.linear(some, table).float()
                sums["nats"] += float(functional.cross_entropy(logits, right, reduction="sum"))
                best = logits[:, text:].argmax(dim=1)
                sums["right"] += float((best == right - text).sum())
                sums["digits"] += float(_same_digits(best, right - text).sum())
                sums["count"] += len(right)
    count = sums.pop("count")
    return {name: value / count for name, value in sums.items()}


def _same_digits(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Share of equal digits of codes `[n]`."""
    same = torch.zeros(len(first), device=first.device)
    for level in LEVELS:
        same += first % level == second % level
        first, second = first // level, second // level
    return same / len(LEVELS)


def plan_figures(planner: Planner, policy: DevicePolicy, count: int) -> dict[str, Figures]:
    """How often the block agrees with the caption, always taking the likeliest token.

    Args:
        count: captions, of pieces in keys that training never uses.

    Returns:
        for each field the share of captions that name it whose block agrees, and how many do;
        under `whole` the share of blocks with all fields, and of captions kept word for word.
    """
    choose = Chooser(np.random.default_rng(_PROMPTS_SEED))
    plans = [
        varied(Plan.of(compose(choose.random, 1.0, unseen=True), choose.number(10, 60)), choose)
        for _ in range(count)
    ]
    asked = [ask(plan, choose) for plan in plans]
    scribe = Scribe(text_tokenizer(), 0)
    prompts = [list(scribe.prompts.plan(one.caption, "").conditional) for one in asked]
    blocks = written(planner, prompts, policy)
    texts = [scribe.prompts.tokenizer.decode(ids) for ids in blocks]
    return agreement(plans, asked, [parse(text)[0] for text in texts])


def agreement(
    plans: Sequence[Plan], asked: Sequence[Asked], fields: Sequence[dict[str, object]]
) -> dict[str, Figures]:
    """See `plan_figures`; `fields` are what was read out of each block."""
    told: dict[str, list[bool]] = defaultdict(list)
    for plan, one, made in zip(plans, asked, fields, strict=True):
        wanted = {"bpm": plan.bpm, "keyscale": plan.keyscale, "duration": plan.duration,
                  "timesignature": str(plan.metre)}  # fmt: skip
        for name, value in wanted.items():
            if name in one.says:
                told[name].append(made.get(name) == value)
        told["whole"].append(set(made) == set(FIELDS))
        kept = writable(one.caption).strip(" ,.;")
        told["words kept"].append(kept in str(made.get("caption", "")))
    return {name: {"share": float(np.mean(rows)), "of": len(rows)} for name, rows in told.items()}


def written(
    planner: Planner, prompts: Sequence[Sequence[int]], policy: DevicePolicy
) -> list[list[int]]:
    """The likeliest text after each prompt, to the end of its block."""
    device, close = policy.device, text_tokenizer().convert_tokens_to_ids(CLOSE)
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    tokens = torch.zeros(len(prompts), int(lengths.max()) + _LONGEST, dtype=torch.long)
    for line, ids in zip(tokens, prompts, strict=True):
        line[: len(ids)] = torch.tensor(ids)
    tokens = tokens.to(device)
    rows = torch.arange(len(prompts), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    with torch.no_grad(), policy.autocast("lm"):
        table = planner.table()
        text = table[: planner.shape.text]
        for step in range(_LONGEST):
            seen = tokens[:, : int(lengths.max())]
            hidden = planner(seen, table)[rows, lengths - 1]
            best = functional.linear(hidden, text).argmax(dim=1)
            best = torch.where(ended, 0, best)
            tokens[rows, lengths] = best
            lengths += ~ended
            ended |= best == close
            if step % 8 == 0 and bool(ended.all()):
                break
    return [
        line[len(ids) : length].tolist()
        for line, ids, length in zip(tokens, prompts, lengths.tolist(), strict=True)
    ]
