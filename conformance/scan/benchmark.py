"""Times the scanner beside ruff, semgrep and TorchFix on the same folders, in one run.

``python -m conformance.scan.benchmark --ruff PATH [--semgrep PATH] [--torchfix PATH] FOLDER...``
runs each tool several times in turn (so that a busy machine disturbs all alike) and prints
medians and ratios. Semgrep gets rules of the same intent as the scanner's simplest ones.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: What semgrep can say of the same matter: literals, calls and defaults, without guards.
SEMGREP_RULES = """rules:
- id: device-literal
  languages: [python]
  severity: ERROR
  message: device literal
  pattern-either:
    - pattern: $X.cuda(...)
    - pattern: $X.to("=~/^cuda/", ...)
    - pattern: $F(..., device="=~/^cuda/", ...)
    - pattern: torch.device("=~/^cuda/", ...)
- id: backend-call
  languages: [python]
  severity: ERROR
  message: unguarded call
  patterns:
    - pattern: torch.cuda.$F(...)
    - pattern-not-inside: |
        if torch.cuda.is_available():
          ...
- id: device-default
  languages: [python]
  severity: ERROR
  message: device default
  pattern: |
    def $F(..., $P="cuda", ...):
      ...
- id: cuda-or-cpu
  languages: [python]
  severity: WARNING
  message: selection
  pattern: '"cuda" if torch.cuda.is_available() else "cpu"'
- id: cuda-autocast
  languages: [python]
  severity: WARNING
  message: autocast
  pattern-either:
    - pattern: torch.autocast("cuda", ...)
    - pattern: torch.cuda.amp.$F(...)
- id: load-without-map-location
  languages: [python]
  severity: WARNING
  message: load
  patterns:
    - pattern: torch.load(...)
    - pattern-not: torch.load(..., map_location=$M, ...)
"""


@dataclass
class Tool:
    """One command, with the seconds that each of its runs took."""

    name: str
    command: list[str]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Run once; raises RuntimeError when the tool itself failed (findings are no failure)."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        environment = {**os.environ, "SEMGREP_SEND_METRICS": "off"}
        done = subprocess.run(self.command, capture_output=True, check=False, env=environment)
        self.wall.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{self.name} failed: {done.stderr.decode(errors='replace')[-500:]}")


def tools(options: argparse.Namespace, scratch: Path) -> list[Tool]:
    """The commands to compare."""
    folders = [str(folder) for folder in options.folders]
    scan = [sys.executable, "-m", "conformance.scan", "--isolated", "--quiet", "--statistics"]
    cache = ["--cache-dir", str(scratch / "cache")]
    found = [
        Tool("ruff F, no cache", [options.ruff, "check", "--isolated", "--select", "F",
                                  "--no-cache", "-q", "--statistics", *folders]),
        Tool("scan, cold", [*scan, "--no-cache", *folders]),
        Tool("scan, warm", [*scan, *cache, *folders]),
    ]  # fmt: skip
    if options.semgrep:
        rules = scratch / "rules.yaml"
        rules.write_text(SEMGREP_RULES, encoding="utf-8")
        found.append(
            Tool("semgrep", [options.semgrep, "scan", "--config", str(rules), "--quiet",
                             "--metrics", "off", "--disable-version-check", "--no-git-ignore",
                             "--json", "--output", os.devnull, *folders])
        )  # fmt: skip
    if options.torchfix:
        found.append(Tool("torchfix", [options.torchfix, "--select", "ALL", *folders]))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print a table; returns 0."""
    parser = argparse.ArgumentParser("python -m conformance.scan.benchmark", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--ruff", default=shutil.which("ruff") or "ruff")
    parser.add_argument("--semgrep")
    parser.add_argument("--torchfix")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--slow-repeat", type=int, default=1, help="runs of semgrep and TorchFix")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        compared = tools(options, Path(folder))
        compared[2].run()  # fills the cache
        compared[2].wall.clear()
        compared[2].cpu.clear()
        for turn in range(options.repeat):
            for tool in compared:
                if tool.name not in ("semgrep", "torchfix") or turn < options.slow_repeat:
                    tool.run()
    base = compared[0]
    wall, cpu = statistics.median(base.wall), statistics.median(base.cpu)
    sys.stdout.write("tool               wall s    x ruff    cpu s    x ruff   runs\n")
    for tool in compared:
        seconds, used = statistics.median(tool.wall), statistics.median(tool.cpu)
        sys.stdout.write(
            f"{tool.name:<17}{seconds:>8.2f}{seconds / wall:>10.2f}"
            f"{used:>9.2f}{used / cpu:>10.2f}{len(tool.wall):>7}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
