"""How the command line talks: results on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from acestep.device import DEVICE_CHOICES

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


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


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def result(text: str) -> None:
    """A line of the result, on stdout."""
    print(text, flush=True)  # noqa: T201


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
        task = bar.add_task("starting", total=1.0)
        yield lambda fraction, desc="": bar.update(task, completed=fraction, description=desc)
