"""The command line `acestep`: the web page without a subcommand, songs and tools with one."""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from acestep import __version__
from acestep.console.terminal import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    OneLineParser,
    add_device_option,
    add_engine_option,
    add_everywhere,
    add_quantize_option,
    insistent_interrupts,
    say,
)
from acestep.device import BACKEND_CHOICES
from acestep.errors import AceStepError, CancelledError, RequestError
from acestep.song.normalise import shown

if TYPE_CHECKING:
    from acestep.device import DevicePolicy

COMMANDS = (
    "generate",
    "inspire",
    "understand",
    "align",
    "devices",
    "download",
    "bench",
    "batch",
    "serve",
    "train",
)
UI_LANGUAGES = ("en", "zh", "ja")
# What the system says about a file that was named, rather than about the work.
_NAMES = (
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, for running and for inspection."""
    parser = OneLineParser(
        prog="acestep",
        description="ACE-Step 1.5 text-to-music on CUDA, Apple's MPS and CPU.",
        epilog='Make a song: acestep generate "warm lo-fi piano, rain" -o song.flac',
    )
    parser.add_argument("--version", action="version", version=f"acestep {__version__}")
    _add_page_options(parser)
    subparsers = parser.add_subparsers(dest="command", metavar="{" + ",".join(COMMANDS) + "}")
    for name in COMMANDS:
        importlib.import_module(f"acestep.cli.{name}").add_parser(subparsers)
        add_everywhere(subparsers.choices[name])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; by default the process's own.

    Returns:
        The exit code: 0 done, 2 the request was wrong, 1 it failed while running, 130 it
        was interrupted. Every failure is one line on stderr; `--debug` adds the traceback.
    """
    debug = False
    try:
        arguments = build_parser().parse_args(argv)
        debug = arguments.debug
        if arguments.command is None:
            return _open_page(arguments)
        with insistent_interrupts():
            code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        # CPython remembers an interrupt that passed through an exec (dataclasses make their
        # methods so) and ends `python -m` by the signal whatever code is returned; a new one forgets.
        exec("")
        say("acestep: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 (the last resort: one line, no traceback)
        _explain(error, debug)
        wrong = isinstance(error, RequestError) or _is_about_a_name(error)
        cancelled = isinstance(error, CancelledError)
        return EXIT_USAGE if wrong else EXIT_INTERRUPTED if cancelled else EXIT_FAILED


def resolve_options(arguments: argparse.Namespace) -> tuple[DevicePolicy, str]:
    """The device policy and the language model's backend that the options ask for.

    Without `--backend` the device decides; a backend that the device cannot run is refused.

    Raises:
        RequestError: the device is absent, or cannot run the backend.
    """
    from acestep.device import resolve

    policy = resolve(arguments.device, quantization=arguments.quantize, engine=arguments.engine)
    backend = arguments.backend or policy.lm_backend
    if problem := policy.lm_backend_problem(backend):
        raise RequestError(
            f"the backend '{backend}' cannot be used on {policy.name}: "
            f"{problem}; use --backend {policy.lm_backend}"
        )
    return policy, backend


def _open_page(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("gradio") is None:
        say(
            "acestep: the web page needs gradio; install it with: pip install 'acestep[ui]', or "
            'make a song without it: acestep generate "warm lo-fi piano, rain"'
        )
        return EXIT_USAGE
    if arguments.enable_api and importlib.util.find_spec("prometheus_client") is None:
        say(
            "acestep: the HTTP API needs prometheus_client; install it with: pip install "
            "'acestep[server]'"
        )
        return EXIT_USAGE
    from acestep.gradio_ui.interfaces.server import serve
    from acestep.gradio_ui.settings import PageOptions

    options = PageOptions.of(vars(arguments)).checked()
    resolve_options(arguments)
    serve(options, say)
    return EXIT_OK


def _is_about_a_name(error: Exception) -> bool:
    """Whether the system refused a file for its name, type or permissions."""
    return isinstance(error, OSError) and error.errno in _NAMES and error.filename is not None


def _explain(error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if _is_about_a_name(error):
        assert isinstance(error, OSError)
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        say(f"acestep: error: {shown(name)}: {error.strerror}; give the name of another file")
        return
    known = isinstance(error, AceStepError)
    line = " ".join(str(error).split()) or type(error).__name__
    say(f"acestep: error: {line if known else f'{type(error).__name__}: {line} (see --debug)'}")


def _add_page_options(parser: argparse.ArgumentParser) -> None:
    page = parser.add_argument_group("the web page (no subcommand)")
    page.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    page.add_argument("--server-name", default="127.0.0.1", help="address to listen on")
    page.add_argument("--share", action="store_true", help="make a public link through gradio")
    page.add_argument("--debug", action="store_true", help="print tracebacks")
    page.add_argument("--language", choices=UI_LANGUAGES, default="en", help="of the page")
    page.add_argument(
        "--enable-api", action="store_true", help="serve the HTTP API beside the page"
    )
    page.add_argument("--api-key", help="key that API clients must send")
    page.add_argument("--auth-username", help="name to log in with")
    page.add_argument("--auth-password", help="password to log in with")
    _add_switch(page, "--service_mode", "fixed configuration for many visitors")
    service = parser.add_argument_group("what the page loads at start")
    _add_switch(service, "--init_service", "load the checkpoint at start")
    service.add_argument("--checkpoint", help="folder that holds the checkpoints")
    service.add_argument("--config_path", default="auto", help="which checkpoint (default: auto)")
    add_device_option(service)  # type: ignore[arg-type]
    add_engine_option(service, "auto")
    _add_switch(service, "--init_llm", "load the language model at start")
    service.add_argument("--lm_model_path", help="which 5 Hz language model")
    service.add_argument(
        "--backend",
        choices=BACKEND_CHOICES,
        help="engine of the language model (default: mlx with that engine, vllm on CUDA where it "
        "is installed, else pt)",
    )
    _add_switch(service, "--use_flash_attention", "attention through flash-attn (CUDA)")
    _add_switch(service, "--offload_to_cpu", "keep idle modules on the host")
    _add_switch(service, "--offload_dit_to_cpu", "keep the idle DiT on the host")
    add_quantize_option(service, None)


def _add_switch(parser: argparse._ArgumentGroup, name: str, text: str) -> None:
    """A flag that also takes true or false, as ACE-Step's scripts write it."""
    parser.add_argument(
        name, type=_boolean, nargs="?", const=True, default=False, metavar="BOOL", help=text
    )


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return values[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false") from None


if __name__ == "__main__":
    sys.exit(main())
