"""`acestep download`: fetch a checkpoint from the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.checkpoint.downloading import download, download_language_model
from acestep.checkpoint.names import LAYOUTS, SOURCES
from acestep.console.terminal import EXIT_OK, add_quantize_option, result
from acestep.errors import CheckpointError, RequestError
from acestep.gpu_config import LM_MEMORY_GB


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "download",
        help="fetch a checkpoint",
        description="Fetch a checkpoint from the Hugging Face Hub; an interrupted one resumes. "
        "With --quantize 8 or 4 a language model is also made small for MLX, in a folder of its "
        "own, whether it was fetched or was here.",
    )
    parser.add_argument(
        "name",
        help=f"one of {', '.join((*SOURCES, *LM_MEMORY_GB))}, or a Hub id such as ACE-Step/name",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="of a short name that is published in both (default: diffusers where there is one)",
    )
    add_quantize_option(parser, None)
    parser.add_argument("--to", type=Path, help="folder to put it in (default: the cache)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch it and print where it is."""
    if arguments.quantize is not None:
        result(str(_small(arguments.name, arguments.to, arguments.quantize)))
        return EXIT_OK
    if arguments.name in LM_MEMORY_GB:
        if arguments.layout is not None:
            raise RequestError("a language model has one layout; leave --layout out")
        result(str(download_language_model(arguments.name, arguments.to)))
        return EXIT_OK
    checkpoint = download(arguments.name, arguments.to, arguments.layout)
    result(str(checkpoint.path))
    return EXIT_OK


def _small(name: str, to: Path | None, kind: str) -> Path:
    """The folder of a language model in few bits, beside the model itself or where it is asked.

    Raises:
        RequestError: it is none, or MLX is not installed.
    """
    from acestep.device import resolve
    from acestep.lm import models

    # Before anything is fetched.
    policy = resolve("cpu", quantization=kind, engine="mlx")
    if name in SOURCES:
        raise RequestError(
            f"{name} is made small when it is loaded, with --quantize; a folder is made of language "
            f"models: {', '.join(LM_MEMORY_GB)}"
        )
    from acestep.lm.mlx_weights import saved_small

    try:
        source = models.find(name)
    except CheckpointError:
        if name not in LM_MEMORY_GB:
            raise
        source = download_language_model(name, None)
    target = (to or source.parent) / f"{source.name}-{kind.removeprefix('int')}bit"
    return saved_small(source, target, str(policy.quantization))
