"""What the commands that use the language model share: options, loading, printing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from acestep.console.terminal import (
    add_device_option,
    add_engine_option,
    add_quantize_option,
    result,
    say,
)
from acestep.device import BACKEND_CHOICES, DTYPE_CHOICES
from acestep.errors import GenerationError
from acestep.song.progress import share
from acestep.song.request import MAX_SEED, check_range

if TYPE_CHECKING:
    from acestep.device import DevicePolicy
    from acestep.inference import SampleResult
    from acestep.llm_inference import LLMHandler
    from acestep.song.progress import Progress

DEMO_NOTICE = (
    "no real language model here: using the built-in demo, a toy that knows ten instruments; for "
    "words: acestep download acestep-5Hz-lm-0.6B"
)

# Share of the time of a planned song that planning takes: of 30 s by the built-in models.
_PLANNED = 0.5


def add_planner_options(parser: Any, model: str | None = None) -> None:
    """Declare `--lm-model`, by default the given one or else the largest, and `--backend`."""
    parser.add_argument(
        "--lm-model",
        default=model,
        help=f"5 Hz language model: demo, a name or a folder (default: {model or 'the largest'})",
    )
    parser.add_argument(
        "--backend", choices=BACKEND_CHOICES, help="its engine (default: what the device runs best)"
    )


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `inspire` and `understand` have in common."""
    add_planner_options(parser)
    # The bare command has --device too; without SUPPRESS its value would be overwritten.
    add_device_option(parser, default=argparse.SUPPRESS)
    add_engine_option(parser)
    parser.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto", help="precision")
    add_quantize_option(parser)
    parser.add_argument("--temperature", type=float, default=0.85, help="0 takes no chances")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but the result")


def check(arguments: argparse.Namespace, policy: DevicePolicy) -> None:
    """Refuse a language model that is not here, or cannot run here, before anything is loaded.

    Raises:
        RequestError: see `LLMHandler.load`.
    """
    from acestep.lm import loading

    loading.find(arguments.lm_model, policy, backend=arguments.backend)


def check_sampling(arguments: argparse.Namespace) -> None:
    """Refuse what `inspire` and `understand` cannot write with, before anything is loaded.

    Raises:
        RequestError: names the option.
    """
    from acestep.lm.sampling import Sampling

    check_range("seed", arguments.seed, 0, MAX_SEED)
    Sampling(temperature=arguments.temperature).checked()


def load(
    arguments: argparse.Namespace, policy: DevicePolicy, *, offload: bool = False
) -> LLMHandler:
    """The language model that the options ask for; where it is a toy, that is said once.

    Raises:
        RequestError: see `LLMHandler.load`.
    """
    from acestep.llm_inference import LLMHandler

    planner = LLMHandler()
    planner.load(arguments.lm_model, policy, backend=arguments.backend, offload=offload)
    is_demo = (planner.model_name or "").startswith("demo")
    if is_demo and not arguments.lm_model and not arguments.quiet:
        say(DEMO_NOTICE)
    return planner


def planned_progress(progress: Progress | None) -> Progress | None:
    """A callback for planning, and for making the song after it, as one piece of work."""
    if progress is None:
        return None
    planning, making = share(progress, 0.0, _PLANNED), share(progress, _PLANNED, 1.0)
    assert planning is not None
    assert making is not None

    def told(fraction: float, desc: str = "") -> None:
        (planning if desc.startswith("planning") else making)(fraction, desc=desc)

    return told


def print_sample(sample: SampleResult, as_json: bool, asked: Mapping[str, Any]) -> None:
    """Print a description.

    Args:
        sample: what the language model made.
        as_json: as JSON, with what was asked for beside it.
        asked: what that was.

    Raises:
        GenerationError: there is none.
    """
    if not sample.success:
        raise GenerationError(sample.error or "the language model gave nothing")
    names = ("caption", "bpm", "duration", "keyscale", "timesignature", "language")
    values = {name: getattr(sample, name) for name in (*names, "instrumental", "lyrics")}
    if as_json:
        result(json.dumps({"asked": asked, **values}, ensure_ascii=False, indent=2))
    else:
        result(yaml.safe_dump(values, allow_unicode=True, sort_keys=False).rstrip("\n"))
