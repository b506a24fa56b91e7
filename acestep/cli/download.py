"""`acestep download`: fetch a checkpoint from the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.checkpoint.downloading import download, download_language_model
from acestep.checkpoint.names import LAYOUTS, SOURCES
from acestep.console.terminal import EXIT_OK, result
from acestep.errors import RequestError
from acestep.gpu_config import LM_MEMORY_GB


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "download",
        help="fetch a checkpoint",
        description="Fetch a checkpoint from the Hugging Face Hub; an interrupted one resumes.",
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
    parser.add_argument("--to", type=Path, help="folder to put it in (default: the cache)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch it and print where it is."""
    if arguments.name in LM_MEMORY_GB:
        if arguments.layout is not None:
            raise RequestError("a language model has one layout; leave --layout out")
        result(str(download_language_model(arguments.name, arguments.to)))
        return EXIT_OK
    checkpoint = download(arguments.name, arguments.to, arguments.layout)
    result(str(checkpoint.path))
    return EXIT_OK
