"""The page as a program of its own, for measurements and tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil


class PageProcess:
    """`acestep` on the CPU with the built-in checkpoint; ready when the block is entered.

    Args:
        folder: holds its songs and uploads, as `page`; models are shared with others.
        options: more of the command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self._options = folder, options
        self.errors: list[str] = []
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.started_in = 0.0

    def start(self) -> None:
        """Start it and wait until it says that it is ready.

        Raises:
            RuntimeError: it ended instead.
        """
        began = time.monotonic()
        command = [sys.executable, "-m", "acestep", "--port", str(self.port), "--device", "cpu"]
        self.process = subprocess.Popen(
            [*command, *self._options],
            env={**os.environ, "ACESTEP_PAGE": str(self.folder / "page")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ready = threading.Event()

        def listen() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                self.errors.append(line)
                if "the page is at" in line:
                    self.started_in = time.monotonic() - began
                    ready.set()
            ready.set()

        self._listener = threading.Thread(target=listen, daemon=True)
        self._listener.start()
        ready.wait(120)
        if not self.started_in:
            self.process.kill()
            raise RuntimeError(f"the page did not start: {''.join(self.errors)}")

    def kill(self) -> None:
        """End it without a warning, as a crash would."""
        self.process.kill()
        self._end()

    def memory(self) -> float:
        """Its resident memory, MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def files(self) -> int:
        """How many files and connections it has open."""
        return int(psutil.Process(self.process.pid).num_fds())

    def __enter__(self) -> PageProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._end()

    def _end(self) -> None:
        self.process.wait()
        self._listener.join()
        if self.process.stderr is not None:
            self.process.stderr.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
