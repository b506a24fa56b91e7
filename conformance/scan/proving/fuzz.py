"""Feeds the scanner made-up and mutated sources and checks that nothing breaks.

``python -m conformance.scan.proving.fuzz --count 20000 [PATH...]``: programs grown from a grammar of device
idioms, arbitrary bytes, and real files with bytes, lines and tokens changed. For each: no
exception, no more than two seconds of CPU, and fixes that parse, mend what they claim and are final.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conformance.scan.answering.fixing import Pass, fix_source, passes
from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES
from conformance.scan.reading.source import Source, decode

LIMIT_SECONDS = 2.0

_DEVICES = ("cuda", "cuda:0", "cpu", "mps", "xpu", "auto", "gpu")
_NAMES = ("x", "device", "dev", "model", "self.device", "naïve", "變數", "DEVICE", "use_cuda")
_TESTS = (
    "torch.cuda.is_available()",
    "not torch.cuda.is_available()",
    "torch.backends.mps.is_available()",
    "{n}.is_cuda",
    "{n} == {d}",
    "{n}.type != {d}",
    "{n} in ({d}, {d})",
    "{n} is None",
    "{t} and {t}",
    "{t} or not {t}",
    "has_cuda()",
    "use_cuda",
)
_EXPRESSIONS = (
    "{d}",
    "f'cuda:{{{n}}}'",
    "torch.device({e})",
    "{e} if {t} else {e}",
    "{n} or {e}",
    "({d}, {d})[{t}]",
    "torch.zeros(3, device={e}, dtype=torch.float64)",
    "{n}.to({e})",
    "{n}.cuda()",
    "{n}.to({e}, non_blocking=True).double()",
    "torch.cuda.memory_allocated()",
    "torch.cuda.get_device_properties(0).total_memory",
    "torch.Generator(device={e})",
    "torch.load('x')",
    "os.environ.get('D', {d})",
    "[{d}, {d}, {d}]",
    "{n}.pin_memory()",
    "lambda: {e}",
    "{{'device': {e}}}",
    "[{e} for {s} in {n} if {t}]",
    "({s} := {e})",
)
_STATEMENTS = (
    "{n} = {e}",
    "torch.cuda.empty_cache()",
    "torch.cuda.synchronize()  # conformance: ignore[DEV102] a reason",
    "torch.cuda.manual_seed_all(0)",
    "if {t}:\n{b}else:\n{b}",
    "if {t}:\n    return {e}\n",
    "with torch.autocast('cuda'):\n{b}",
    "with torch.device({e}):\n{b}",
    "try:\n{b}except RuntimeError:\n{b}",
    "for {s} in range(torch.cuda.device_count()):\n{b}",
    "def {s}(x: torch.Tensor, device={d}):\n{b}",
    "class {s}:\n    device: str = {d}\n",
    "match {n}:\n    case {d}:\n        {n} = {e}\n    case _:\n        {n} = {e}\n",
    "import flash_attn",
    "parser.add_argument('--device', choices=[{d}, {d}], default={d})",
    "return {e}",
    "assert {t}",
    "while {t}:\n{b}",
    "'''cuda {s}\n'''",
)
_SIMPLE = ("x", "y", "device", "f", "naïve", "變數")
_HEADS = (
    "import torch, os\n",
    "import torch as t\n",
    "from torch import cuda as c\n",
    "\ufeff",
    "",
)

_FLAG = re.compile(r"\buse_cuda (?:=|:=) ")


def program(rng: random.Random, statements: int = 6) -> str:
    """A program of device idioms; most parse, some do not."""
    lines = [rng.choice(_HEADS), "import torch, os\n"]
    lines += [_statement(rng, 3, 0) for _ in range(rng.randint(1, statements))]
    return "".join(lines)


def _fill(rng: random.Random, template: str, depth: int, indent: int) -> str:
    out = []
    at = 0
    while at < len(template):
        if template.startswith(("{{", "}}"), at):
            out.append(template[at])
            at += 2
        elif template[at] == "{":
            out.append(_part(rng, template[at + 1], depth, indent))
            at += 3
        else:
            out.append(template[at])
            at += 1
    return "".join(out)


def _part(rng: random.Random, kind: str, depth: int, indent: int) -> str:
    match kind:
        case "d":
            return repr(rng.choice(_DEVICES))
        case "n":
            return rng.choice(_NAMES)
        case "s":
            return rng.choice(_SIMPLE)
        case "t":
            return _fill(rng, rng.choice(_TESTS if depth > 0 else _TESTS[:4]), depth - 1, indent)
        case "e":
            choices = _EXPRESSIONS if depth > 0 else _EXPRESSIONS[:2]
            return _fill(rng, rng.choice(choices), depth - 1, indent)
        case _:
            return "".join(_statement(rng, depth - 1, indent + 4) for _ in range(rng.randint(1, 2)))


def _statement(rng: random.Random, depth: int, indent: int) -> str:
    choices = _STATEMENTS if depth > 0 else _STATEMENTS[:4]
    text = _fill(rng, rng.choice(choices), depth, 0)
    pad = " " * indent
    return "".join(f"{pad}{line}\n" if line else "\n" for line in text.rstrip("\n").split("\n"))


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A real file with a few bytes, lines or words changed."""
    lines = data.split(b"\n")
    start = rng.randrange(max(1, len(lines) - 60))
    lines = lines[start : start + rng.randint(5, 120)]
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
            case 1:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 2:
                lines[at] = lines[at].replace(
                    b"device", rng.choice((b"'cuda'", b"torch.cuda", b""))
                )
            case 3:
                where = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:where] + rng.randbytes(rng.randint(1, 3)) + lines[at][where:]
            case 4:
                lines[at] = b"    " + lines[at]
            case _:
                lines[at] += rng.choice((b"\r", b"\x0c", b"\\", b"  # cuda", b' """', b"\x00"))
    return b"\n".join(lines)


def inputs(seed: int, count: int, files: Sequence[Path]) -> Iterator[bytes]:
    """Sources to feed: half of them programs, the rest mutated files and arbitrary bytes."""
    rng = random.Random(seed)
    for number in range(count):
        kind = number % 10
        if kind < 5 or (kind < 9 and not files):
            text = program(rng)
            if rng.random() < 0.2:
                text = text.replace("\n", rng.choice(("\r\n", "\r")))
            yield text.encode()
        elif kind < 9:
            yield mutate(rng, rng.choice(files).read_bytes())
        else:
            middle = rng.randbytes(rng.randint(0, 60))
            yield b"cuda" + middle + b"\ntorch.cuda.synchronize()"


@dataclass
class Tally:
    """What a run saw; ``problems`` holds a line for each input that broke a promise."""

    count: int = 0
    parsed: int = 0
    findings: Counter[str] = field(default_factory=Counter)
    fixed: int = 0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)


def check(data: bytes, tally: Tally) -> None:
    """Feed one input and note every broken promise."""
    tally.count += 1
    started = time.process_time()  # a busy machine makes no program slow
    findings = analyse("module.py", data, RULES)
    elapsed = time.process_time() - started
    tally.slowest = max(tally.slowest, elapsed)
    if elapsed > LIMIT_SECONDS:
        tally.problems.append(f"{elapsed:.1f} s: {data[:200]!r}")
    tally.findings.update(finding.code for finding in findings)
    if any(finding.code == "DEV000" for finding in findings):
        return
    tally.parsed += 1
    for unsafe in (False, True):
        fixable = [f for f in findings if f.fix is not None and (f.fix.safe or unsafe)]
        if not fixable:
            continue
        rounds = list(passes("module.py", data, RULES, unsafe=unsafe))
        after = rounds[-1].after if rounds else data
        if after == data and not _parses(data):
            continue  # the fault lay where no rule looks; such a file is not touched
        if after == data:
            tally.problems.append(f"not fixed ({fixable[0].code}): {data!r}")
            continue
        tally.fixed += 1
        if not _parses(after):
            tally.problems.append(f"does not parse: {after!r}")
        if fix_source("module.py", after, RULES, unsafe=unsafe).after != after:
            tally.problems.append(f"not final: {data!r}")
        laters = [made.findings for made in rounds[1:]] + [analyse("module.py", after, RULES)]
        for made, later in zip(rounds, laters, strict=True):
            tally.problems += [f"hidden: {line}: {data!r}" for line in hidden(made, later)]


def hidden(made: Pass, later: list[Finding]) -> list[str]:
    """What was found before a round of mending, was not mended, and is not found any more.

    ``later`` is what is found after it.
    A finding is looked for at its place, whatever the rule says of it now. What the edits took
    away with the code is gone rightly.
    """
    source = Source("", *decode(made.before))
    if _FLAG.search(source.text):
        return []  # what a flag was set to has changed, and so has what it says
    mended = Source("", decode(made.after)[0])
    left = {(f.line, f.column) for f in later}
    shown = {(f.line, f.column) for f in later if f.severity > Severity.NOTE}
    lost = []
    for finding in made.findings:
        if finding.code.startswith("DEV00"):
            continue  # of a comment, whose need may end with what it silenced
        start = source.starts[finding.line - 1] + finding.column - 1
        if _is_mended(finding, made) or any(e.start <= start < e.end for e in made.edits):
            continue
        moved = start + sum(len(e.text) - (e.end - e.start) for e in made.edits if e.end <= start)
        line = mended.line_of(moved)
        place = line, moved - mended.starts[line - 1] + 1
        if place not in (left if finding.severity == Severity.NOTE else shown):
            lost.append(f"{finding.code} in line {finding.line}")
    return lost


def _is_mended(finding: Finding, made: Pass) -> bool:
    return finding.fix is not None and set(finding.fix.edits) <= set(made.edits)


def _parses(data: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(data)
    except (SyntaxError, ValueError):
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns 1 when a promise was broken."""
    parser = argparse.ArgumentParser("python -m conformance.scan.proving.fuzz", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="folders with real files to mutate")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    files = sorted(file for path in options.paths for file in path.rglob("*.py"))
    tally = Tally()
    for data in inputs(options.seed, options.count, files):
        check(data, tally)
    sys.stdout.write(
        f"{tally.count} inputs, {tally.parsed} parsed, {sum(tally.findings.values())} findings of "
        f"{len(tally.findings)} rules, {tally.fixed} fixed, slowest {tally.slowest:.3f} s, "
        f"{len(tally.problems)} problems\n"
    )
    for problem in tally.problems[:20]:
        sys.stdout.write(problem + "\n")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
