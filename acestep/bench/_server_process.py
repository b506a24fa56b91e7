"""The HTTP service as a program of its own, for measurements and tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import httpx
import psutil


class ServerProcess:
    """`acestep serve` on the CPU with the built-in checkpoint; ready when the block is entered.

    Args:
        folder: for its tasks and results; models are shared with others.
        options: more of the command line.
        environment: more of its variables.
    """

    def __init__(
        self, folder: Path, *options: str, environment: dict[str, str] | None = None
    ) -> None:
        self.folder, self._options, self._environment = folder, options, environment or {}
        self.errors: list[str] = []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.started_in = 0.0

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ended instead, or does not answer.
        """
        began = time.monotonic()
        command = [sys.executable, "-m", "acestep", "serve", "--port", str(self.port)]
        command += ["--device", "cpu", "--model", "demo", "--lm-model", "demo"]
        command += ["--data-dir", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, *self._options],
            env={**os.environ, **self._environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() - began > 120:
                self.process.kill()
                self._end()
                raise RuntimeError(f"the service did not start: {''.join(self.errors[-20:])}")
            time.sleep(0.02)
        self.started_in = time.monotonic() - began

    def kill(self) -> None:
        """End it without a warning, as a crash would."""
        self.process.kill()
        self._end()

    def stop(self, seconds: float = 120.0) -> int:
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

    def __enter__(self) -> ServerProcess:
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

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if " acestep.server.access " not in line:
                self.errors.append(line)

    def _end(self) -> None:
        self.process.wait()
        self._listener.join()
        if self.process.stderr is not None:
            self.process.stderr.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
