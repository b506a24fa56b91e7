"""`acestep download`: fetch a checkpoint from the Hugging Face Hub."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.checkpoint.downloading import download, download_language_model
from acestep.checkpoint.finding import find, is_hub_id
from acestep.checkpoint.folders import cache_dir, checkpoint_roots
from acestep.checkpoint.held import Held
from acestep.checkpoint.names import LAYOUTS, SOURCES
from acestep.console.terminal import EXIT_OK, add_engine_option, add_quantize_option, result
from acestep.errors import CheckpointError, RequestError
from acestep.gpu_config import LM_MEMORY_GB

if TYPE_CHECKING:
    from acestep.device import DevicePolicy


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "download",
        help="fetch a checkpoint",
        description="Fetch a checkpoint from the Hugging Face Hub; an interrupted one resumes. "
        "With --quantize a checkpoint or language model, fetched or here before, is also made "
        "small for the engine of this machine or for --engine, in a folder of its own that loads "
        "without the original.",
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
    add_engine_option(parser, "auto")
    parser.add_argument("--to", type=Path, help="folder to put it in (default: the cache)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch it and print where it is."""
    if arguments.quantize is not None:
        for folder in small_folders(arguments):
            result(str(folder))
        return EXIT_OK
    if arguments.name in LM_MEMORY_GB:
        if arguments.layout is not None:
            raise RequestError("a language model has one layout; leave --layout out")
        result(str(download_language_model(arguments.name, arguments.to)))
        return EXIT_OK
    checkpoint = download(arguments.name, arguments.to, arguments.layout)
    result(str(checkpoint.path))
    return EXIT_OK


def small_folders(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder of a model in few bits, beside the model itself or where it is asked; `demo` names
    a language model and a checkpoint.

    Raises:
        RequestError: the engine does not hold weights so, or what is named is in few bits already.
        CheckpointError: it is not here and cannot be fetched.
    """
    from acestep.device import resolve
    from acestep.lm import models

    # Before anything is fetched. It is the engine that computes here later, but made on the host.
    engine = resolve("auto", engine=arguments.engine).engine
    policy = resolve("cpu", quantization=arguments.quantize, engine=engine)
    name, to = arguments.name, arguments.to
    if name in LM_MEMORY_GB or name == models.DEMO:
        yield _small_language_model(name, to, policy)
    if name not in LM_MEMORY_GB:
        try:
            yield _small_checkpoint(name, arguments.layout, to, policy)
        except CheckpointError:
            if not models.is_model(folder := Path(name).expanduser()):
                raise
            yield _small_language_model(str(folder), to, policy)


def _small_language_model(name: str, to: Path | None, policy: DevicePolicy) -> Path:
    from acestep.lm import models

    try:
        source = models.find(name)
    except CheckpointError:
        if name not in LM_MEMORY_GB:
            raise
        source = download_language_model(name, None)
    kind = str(policy.quantization)
    if policy.on_mlx:
        from acestep.lm.mlx_weights import saved_small
    else:
        from acestep.lm.pt_weights import saved_small
    suffix = Held(policy.engine, kind, "").suffix
    return saved_small(source, (to or source.parent) / f"{source.name}-{suffix}", kind)


def _small_checkpoint(name: str, layout: str | None, to: Path | None, policy: DevicePolicy) -> Path:
    from acestep.checkpoint.small import saved_small
    from acestep.engines.loading import packing

    try:
        checkpoint = find(name)
    except CheckpointError:
        if name not in SOURCES and not is_hub_id(name):
            raise
        checkpoint = download(name, None, layout)
    kind = str(policy.quantization)
    # The Hub's cache is no folder that anything is found in by name.
    parent = checkpoint.path.parent
    root = to or (parent if parent in checkpoint_roots() else cache_dir() / "checkpoints")
    target = root / f"{checkpoint.name}-{Held(policy.engine, kind, '').suffix}"
    return saved_small(checkpoint, target, policy.engine, kind, packing(policy))
