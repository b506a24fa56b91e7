"""Times the scanner beside ruff, semgrep and TorchFix on the same folders, in one run.

``python -m conformance.bench.scan --ruff PATH [--semgrep PATH] [--torchfix PATH] FOLDER...``
runs each tool several times in turn (so that a busy machine disturbs all alike) and prints
medians and ratios. Semgrep gets rules of the same intent as the scanner's simplest ones. TorchFix
takes half an hour for three million lines; ``--share 0.05`` gives it, and the scan to compare it
with, so large a part of the files, drawn by seed. ``--growth 0.03 0.1 0.3 1`` runs ruff and the scan
on such shares of the files instead, drawn by seed and each at its place.
"""

from __future__ import annotations

import argparse
import os
import random
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
    base: int = 0
    """Index of the tool that this one is compared with."""
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


def tools(options: argparse.Namespace, scratch: Path, share: float) -> list[Tool]:
    """The commands to compare, on a share of the files."""
    # A copy, for semgrep passes over what lies in a virtual environment.
    folders = [copied(options.folders, scratch / "all", share, options.seed)]
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
        part = drawn(options.folders, options.share, options.seed, scratch / "part")
        base = len(found)
        found.append(Tool("scan, cold, part", [*scan, "--no-cache", part], base))
        found.append(Tool("torchfix, part", [options.torchfix, "--select", "ALL", part], base))
    return found


def copied(folders: Sequence[Path], into: Path, share: float = 1, seed: int = 1) -> str:
    """Copies a share of the folders' Python files, drawn at random, and returns where to."""
    files = sorted((number, file) for number, f in enumerate(folders) for file in f.rglob("*.py"))
    for number, file in random.Random(seed).sample(files, max(1, round(share * len(files)))):
        _copy(file, into / str(number) / file.relative_to(folders[number]))
    return str(into)


def drawn(folders: Sequence[Path], share: float, seed: int, into: Path) -> str:
    """Copies a share of the folders' Python files, drawn at random, and returns where to."""
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    chosen = random.Random(seed).sample(files, max(1, round(share * len(files))))
    for number, file in enumerate(chosen):
        _copy(file, into / f"{number % 50}" / f"{number}_{file.name}")
    return str(into)


def _copy(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place)


def measured(options: argparse.Namespace, share: float = 1) -> tuple[list[Tool], int]:
    """The tools after their runs, in turn, and the lines that each of them read."""
    with tempfile.TemporaryDirectory() as folder:
        compared = tools(options, Path(folder), share)
        lines = sum(file.read_bytes().count(b"\n") for file in Path(folder, "all").rglob("*.py"))
        compared[2].run()  # fills the cache
        compared[2].wall.clear()
        compared[2].cpu.clear()
        for _ in range(options.repeat):
            for tool in compared:
                tool.run()
    return compared, lines


def grow(options: argparse.Namespace) -> None:
    """Print a row for each share of the files."""
    out = sys.stdout.write
    out("    lines  ruff, cpu s     cold  us a line   ratio     warm   ratio\n")
    for share in options.growth:
        compared, lines = measured(options, share)
        ruff, cold, warm = (statistics.median(tool.cpu) for tool in compared[:3])
        out(
            f"{lines:>9,}{ruff:>13.2f}{cold:>9.2f}{1e6 * cold / lines:>11.2f}{cold / ruff:>8.2f}"
            f"{warm:>9.2f}{warm / ruff:>8.2f}\n"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print a table; returns 0."""
    parser = argparse.ArgumentParser("python -m conformance.bench.scan", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--ruff", default=shutil.which("ruff") or "ruff")
    parser.add_argument("--semgrep")
    parser.add_argument("--torchfix")
    parser.add_argument("--share", type=float, default=1.0, help="of the files, for TorchFix")
    parser.add_argument("--growth", type=float, nargs="+", metavar="SHARE", help="of the files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(argv)
    if options.growth:
        grow(options)
        return 0
    compared, _ = measured(options)
    out = sys.stdout.write
    out("tool               wall s   ratio    cpu s   ratio  runs  compared with\n")
    for tool in compared:
        base = compared[tool.base]
        wall, used = statistics.median(tool.wall), statistics.median(tool.cpu)
        out(
            f"{tool.name:<17}{wall:>8.2f}{wall / statistics.median(base.wall):>8.2f}"
            f"{used:>9.2f}{used / statistics.median(base.cpu):>8.2f}{len(tool.wall):>6}"
            f"  {base.name}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
