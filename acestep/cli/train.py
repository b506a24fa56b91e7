"""`acestep train`: a folder of songs in, an adapter or a fine-tuned checkpoint out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.checkpoint.names import SOURCES
from acestep.console.terminal import (
    EXIT_OK,
    add_device_option,
    progress_bar,
    quiet_libraries,
    result,
    say,
)
from acestep.device import DTYPE_CHOICES, engines
from acestep.errors import RequestError
from acestep.training.configs import TrainingConfig

_DEFAULTS = TrainingConfig()


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="fine-tune on your own songs",
        description="Fine-tune on a folder of songs, each with its caption in a .txt or its "
        "fields in a .json file of the same name. The same command again continues a run, and with "
        "more --steps one that was finished.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of songs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="for example my.lora")
    kind = parser.add_mutually_exclusive_group()
    rank = _DEFAULTS.lora_rank
    kind.add_argument(
        "--lora", type=int, default=rank, metavar="RANK", help=f"rank (default: {rank})"
    )
    kind.add_argument("--full", action="store_true", help="train every weight of the transformer")
    parser.add_argument(
        "--model",
        default="auto",
        help=f"auto, demo, {', '.join(SOURCES)}, a folder or a Hub id (default: auto)",
    )
    # The bare command has --device too; without SUPPRESS its value would be overwritten.
    add_device_option(parser, default=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto", help="precision")
    _add_run_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print where the result is."""
    from acestep.device import resolve

    dtype = None if arguments.dtype == "auto" else arguments.dtype
    config = TrainingConfig(
        steps=arguments.steps,
        batch_size=arguments.batch,
        accumulate=arguments.accumulate,
        learning_rate=arguments.learning_rate,
        lora_rank=0 if arguments.full else arguments.lora,
        lora_alpha=arguments.alpha,
        dtype=dtype,
        seed=arguments.seed,
        crop_seconds=arguments.crop,
        save_every=arguments.save_every,
        sample_every=arguments.sample_every,
        sample_prompt=arguments.sample_prompt,
    )
    if not arguments.full and arguments.lora < 1:
        raise RequestError(f"LoRA rank {arguments.lora} is out of range; expected at least 1")
    _check_engine(arguments)
    policy = resolve(arguments.device).for_training(dtype)
    from acestep.training import finetune

    quiet_libraries()
    losses: list[float] = []
    with progress_bar(not arguments.quiet) as bar:

        def on_step(done: Any) -> None:
            losses.append(done.loss)
            if bar is not None:
                bar((done.step + 1) / config.steps, desc=f"loss {done.loss:.4f}")

        def on_clip(done: int, count: int) -> None:
            if bar is not None:
                bar(0.0, desc=f"encoding {done}/{count}")

        folder = finetune.run(
            arguments.data, arguments.model, arguments.output, policy, config, on_clip, on_step
        )
    if not arguments.quiet:
        last = losses[-20:]
        loss = f", loss {sum(last) / len(last):.4f}" if last else ""
        result(f"{arguments.output}: {config.steps} steps on {policy.name}{loss}, log in {folder}")
    return EXIT_OK


def _check_engine(arguments: argparse.Namespace) -> None:
    """Refuse another engine than torch, or say that what the environment names is not used."""
    if getattr(arguments, "engine", "auto") == "mlx":
        raise RequestError("training is torch's; leave --engine out")
    if engines.named()[0] == "mlx" and not arguments.quiet:
        say("acestep: training is torch's; ACESTEP_ENGINE=mlx is for songs")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    settings = parser.add_argument_group("training")

    def add(name: str, field: str, text: str = "") -> None:
        value = getattr(_DEFAULTS, field)
        told = f"{text} (default: {value})".strip()
        settings.add_argument(name, type=type(value), default=value, help=told)

    add("--steps", "steps")
    add("--batch", "batch_size", "songs at once")
    add("--accumulate", "accumulate", "batches in a step")
    add("--learning-rate", "learning_rate", "highest; rises at first, then falls to zero")
    settings.add_argument("--alpha", type=float, help="LoRA alpha (default: the rank)")
    add("--crop", "crop_seconds", "longest stretch, seconds")
    add("--seed", "seed")
    add("--save-every", "save_every", "steps between states")
    add("--sample-every", "sample_every", "steps between samples, 0 for none")
    settings.add_argument("--sample-prompt", default="", help="(default: the first caption)")
    settings.add_argument("-q", "--quiet", action="store_true", help="print nothing but problems")
