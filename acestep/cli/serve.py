"""`acestep serve`: the HTTP API of ACE-Step, and chat completions, for the clients there are."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acestep.console.terminal import (
    EXIT_OK,
    EXIT_USAGE,
    DeviceNames,
    add_engine_option,
    add_quantize_option,
    say,
)
from acestep.device import BACKEND_CHOICES, DEVICE_CHOICES

_NEEDED = ("fastapi", "uvicorn", "multipart", "prometheus_client")


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="the HTTP API that ACE-Step's clients speak",
        description="Serve the task API and chat completions. What is not said here is taken from "
        "ACE-Step's variables (ACESTEP_API_HOST, _PORT, _KEY, ACESTEP_CONFIG_PATH, "
        "ACESTEP_LM_MODEL_PATH, ACESTEP_INIT_LLM, ACESTEP_QUEUE_MAXSIZE, …).",
    )
    _add_places(parser)
    _add_models(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        say(
            f"acestep: the server needs {missing[0]}; install it with: pip install "
            "'acestep[server]'"
        )
        return EXIT_USAGE
    from acestep.server.options import ServerOptions, from_environment
    from acestep.server.serving import serve

    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
        if name in ServerOptions.__dataclass_fields__ and value is not None
    }
    serve(from_environment(given, os.environ), say)
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """`acestep-api`: the same as a command of its own."""
    from acestep.acestep_v15_pipeline import main as command

    return command(["serve", *(sys.argv[1:] if argv is None else argv)])


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    # None, so that the environment can say; the bare command's default is another.
    parser.add_argument("--port", type=int, default=None, help="port to listen on (default: 8001)")
    parser.add_argument(
        "--chat-port", type=int, help="serve chat completions alone there too, e.g. 8002"
    )
    parser.add_argument("--api-key", help="key that clients must send")
    parser.add_argument(
        "--no-key", dest="open_without_key", action="store_true", default=None,
        help="serve others than this machine without a key",
    )  # fmt: skip
    parser.add_argument(
        "--allow-folder", dest="allowed", type=Path, action="append", metavar="DIR",
        help="let *_path parameters name files below it; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--allow-origin", dest="origins", action="append", metavar="URL",
        help="let a web site use the API from a browser; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", type=Path, help="folder for tasks and results (default: in the cache)"
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", dest="models", nargs="+", metavar="NAME",
        help="checkpoints that can be asked for, the default first (default: all that are here)",
    )  # fmt: skip
    parser.add_argument("--lm-model", help="which 5 Hz language model (default: the largest)")
    parser.add_argument("--backend", dest="lm_backend", choices=BACKEND_CHOICES, help="its engine")
    parser.add_argument(
        "--init-llm", action="store_true", default=None,
        help="plan every song with it, whether or not it asks for thinking",
    )  # fmt: skip
    parser.add_argument(
        "--ahead", action="store_true", default=None,
        help="plan a song while the one before it is made, where the device does both at a time",
    )  # fmt: skip
    parser.add_argument(
        "--device", dest="devices", nargs="+", metavar="DEVICE",
        type=lambda text: text.strip().lower(), choices=DeviceNames(DEVICE_CHOICES),
        help="where to make music, one worker each: auto, cuda:0 cuda:1 (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="work in a running Ray cluster, on the devices named or else on each of its GPUs; "
        "`local` starts Ray on this machine (needs the extra batch)",
    )  # fmt: skip
    parser.add_argument("--checkpoint", default=None, help="folder that holds the checkpoints")
    parser.add_argument(
        "--offload", choices=("none", "dit", "all"), help="what to keep on the host while idle"
    )
    # None, so that the environment can say.
    add_engine_option(parser, None)
    add_quantize_option(parser)
