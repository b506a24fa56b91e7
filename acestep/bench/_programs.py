"""The page and the HTTP service as programs of their own, for measurements and tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx
import psutil

_PATIENCE = 120.0


class ServedProgram(ABC):
    """`acestep` serving something on a port of its own; ready when the block is entered.

    Args:
        options: of the command line.
        environment: more of its variables.

    Attributes:
        errors: what it said on its standard error, over all its starts.
        earlier: how many of them are of starts before the last.
        started_in: seconds that the last start took.
    """

    what: str
    """How an error calls it."""

    def __init__(self, options: Sequence[str], environment: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.errors: list[str] = []
        self.started_in = 0.0
        self.earlier = 0
        self._options, self._environment = options, environment

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it serves by now; asked many times a second."""

    def keeps(self, line: str) -> bool:
        """Whether a line of its standard error is kept among the `errors`."""
        return True

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended instead, or does not get ready.
        """
        began, self.earlier = time.monotonic(), len(self.errors)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "acestep", *self._options, "--port", str(self.port)],
            env={**os.environ, **self._environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() - began > _PATIENCE:
                self.kill()
                raise RuntimeError(f"{self.what} did not start: {''.join(self.errors[-20:])}")
            time.sleep(0.02)
        self.started_in = time.monotonic() - began

    def kill(self) -> None:
        """End it without a warning, as a crash would."""
        self.process.kill()
        self._end()

    def stop(self, seconds: float = _PATIENCE) -> int:
        """End it as people do; its exit code."""
        self.process.terminate()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._end()
        return code

    def memory(self) -> float:
        """Its resident memory, MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def files(self) -> int:
        """How many files and connections it has open."""
        return int(psutil.Process(self.process.pid).num_fds())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.stop()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.errors += filter(self.keeps, self.process.stderr)

    def _end(self) -> None:
        self.process.wait()
        self._listener.join()
        if self.process.stderr is not None:
            self.process.stderr.close()


class PageProcess(ServedProgram):
    """`acestep` on the CPU with the built-in checkpoint.

    Args:
        folder: holds its songs and uploads, as `page`; models are shared with others.
        options: more of the command line.
    """

    what = "the page"

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(["--device", "cpu", *options], {"ACESTEP_PAGE": str(folder / "page")})
        self.folder = folder
        self.url += "/"

    def is_ready(self) -> bool:
        """Whether it has said so."""
        return any("the page is at" in line for line in self.errors[self.earlier :])


class ServerProcess(ServedProgram):
    """`acestep serve` on the CPU with the built-in checkpoint.

    Args:
        folder: for its tasks and results; models are shared with others.
        options: more of the command line.
        environment: more of its variables.
    """

    what = "the service"

    def __init__(
        self, folder: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        built_in = ["--device", "cpu", "--model", "demo", "--lm-model", "demo"]
        super().__init__(
            ["serve", *built_in, "--data-dir", str(folder), *options], environment or {}
        )
        self.folder = folder

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def keeps(self, line: str) -> bool:
        """All but the lines of its access log."""
        return " acestep.server.access " not in line


@contextmanager
def silent_connections(url: str, count: int) -> Iterator[None]:
    """Within the block so many connections to an address are open and say nothing."""
    place = urlsplit(url)
    with ExitStack() as held:
        for _ in range(count):
            held.enter_context(socket.create_connection((place.hostname, place.port), timeout=5))
        yield


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
