"""How the command line talks: results on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from acestep.device import DEVICE_CHOICES, ENGINE_CHOICES, QUANTIZATIONS, quantization_of
from acestep.errors import RequestError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

COMPILE_HELP = (
    "fuse what lies between products on first use: seconds on a Hopper GPU, about a minute "
    "elsewhere"
)


QUIET_HELP = "print nothing but the result"

# Longer than any clean-up of ours, so that none is cut short.
_INSIST_SECONDS = 3.0


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line: what was wrong, and where to look."""

    def __init__(self, **settings: Any) -> None:
        # A subcommand's option must not be taken for the start of one of the bare command's.
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with 2."""
        line = " ".join(message.split())
        self.exit(EXIT_USAGE, f"{self.prog}: error: {line}; see {self.prog} --help\n")


class DeviceNames(tuple[str, ...]):
    """`DEVICE_CHOICES` for argparse, which lists four names and also takes `cuda:1`."""

    def __contains__(self, value: object) -> bool:
        name = str(value)
        return super().__contains__(name) or super().__contains__(name.partition(":")[0])


def add_device_option(parser: argparse.ArgumentParser, default: Any = "auto") -> None:
    """Declare `--device`."""
    parser.add_argument(
        "--device",
        type=lambda text: text.strip().lower(),
        choices=DeviceNames(DEVICE_CHOICES),
        default=default,
        help="where to run: auto takes CUDA, else MPS, else the CPU; cuda:1 names one of several "
        "(default: auto, or ACESTEP_DEVICE)",
    )


def add_engine_option(parser: Any, default: Any = argparse.SUPPRESS) -> None:
    """Declare `--engine`; a subcommand leaves the default to the bare command."""
    parser.add_argument(
        "--engine",
        type=lambda text: text.strip().lower(),
        choices=ENGINE_CHOICES,
        default=default,
        help="what computes: auto takes MLX on Apple silicon where it is installed, else torch "
        "(default: auto, or ACESTEP_ENGINE)",
    )


def add_quantize_option(parser: Any, default: Any = argparse.SUPPRESS) -> None:
    """Declare `--quantize`; a subcommand leaves the default to the bare command."""
    parser.add_argument(
        "--quantize",
        default=default,
        type=_quantization,
        metavar="BITS",
        help="hold the transformers' weights in few bits, which takes a half or a quarter of the "
        f"memory: {', '.join(QUANTIZATIONS)}; 8 and 4 are int8 and int4 (default: none)",
    )


def _quantization(text: str) -> str | None:
    try:
        return quantization_of(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_everywhere(parser: argparse.ArgumentParser) -> None:
    """Let a subcommand take what the bare command and its siblings take: `--debug`, `-q`."""
    known = parser._option_string_actions
    # The bare command has --debug too; without SUPPRESS its value would be overwritten.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="print tracebacks"
    )
    if "--quiet" not in known:
        parser.add_argument("-q", "--quiet", action="store_true", help=QUIET_HELP)


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(_printable(text, sys.stderr), file=sys.stderr, flush=True)  # noqa: T201


def result(text: str) -> None:
    """A line of the result, on stdout."""
    print(_printable(text, sys.stdout), flush=True)  # noqa: T201


def _printable(text: str, stream: Any) -> str:
    """The text as a stream can take it: what its encoding has not, such as the bytes of a file
    name in another one, is escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice off the terminal."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Any]:
    """A progress callback that draws a bar on a terminal's stderr, or None when it may not.

    The callback is called as `progress(fraction, desc=text)`.
    """
    if not (enabled and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<20}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, far = bar.add_task("starting", total=1.0), 0.0

        def tell(fraction: float, desc: str = "") -> None:
            nonlocal far
            if far == 0.0 and fraction > 0.0:
                # What came before, loading, says nothing about the speed of the rest.
                bar.reset(task, description=desc)
            far = max(far, fraction)
            bar.update(task, completed=far, description=desc)

        yield tell


@contextmanager
def insistent_interrupts() -> Iterator[None]:
    """Within the block Ctrl-C is raised again every few seconds until the block is left.

    One that arrives while libraries import each other, or inside a callback from C, can be
    swallowed there, and the program would run on as if nothing had been said.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or not hasattr(signal, "setitimer"):
        yield
        return

    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}

    def insist(*_: object) -> NoReturn:
        # The alarm is taken only now: it may be in use by others, such as a test's time limit.
        before.setdefault(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        signal.signal(signal.SIGALRM, insist)
        signal.setitimer(signal.ITIMER_REAL, _INSIST_SECONDS)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, insist)
    try:
        yield
    finally:
        if signal.SIGALRM in before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
