"""README's console blocks are run, and must print what they say."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from acestep.acestep_v15_pipeline import build_parser, main
from acestep.device import resolve
from conformance.cli import main as conformance

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
# Without the blocks: what is left between backticks stands in a sentence.
INLINE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
# What no two runs have in common.
CHANGING = (
    (r" in [\d.]+ s on ", " in N s on "),
    (r"peak [\d.]+ GiB", "peak N GiB"),
    (r"[\d.]+ of [\d.]+ GiB free", "N of N GiB free"),
)


@dataclass(frozen=True)
class Block:
    """Commands, and what README says that the last of them prints."""

    commands: tuple[str, ...]
    printed: str

    @property
    def last(self) -> list[str]:
        """The words of the last command."""
        return shlex.split(self.commands[-1])


def blocks(kind: str) -> list[Block]:
    pattern = rf"```{kind}\n(.*?)```\n(?:\n```text\n(.*?)```)?"
    return [
        Block(tuple(part for line in code.splitlines() for part in line.split(" && ")), text or "")
        for code, text in re.findall(pattern, TEXT, re.DOTALL)
    ]


def block(words: str) -> Block:
    (found,) = [one for one in blocks("console") if words in one.commands[-1]]
    return found


def plain(text: str, command: list[str]) -> str:
    """Without what changes, and without the way in which lines are wrapped."""
    for pattern, instead in CHANGING:
        text = re.sub(pattern, instead, text)
    if "--seed" not in command:
        text = re.sub(r"seed \d+", "seed N", text)
    return " ".join(text.split())


def on_the_cpu() -> bool:
    return resolve().name == "cpu"


def test_the_first_song(capsys: pytest.CaptureFixture[str]) -> None:
    shown = block(".venv/bin/acestep generate")
    assert shown.last[0] == ".venv/bin/acestep"
    arguments = shown.last[1:] if on_the_cpu() else [*shown.last[1:], "--device", "cpu"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert plain(printed.err + printed.out, shown.last) == plain(shown.printed, shown.last)


def test_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.search(r"```text\n\$ acestep devices\n(.*?)```", TEXT, re.DOTALL)
    assert shown is not None
    assert main(["devices"]) == 0
    told, said = plain(capsys.readouterr().out, []), plain(shown[1], [])
    if on_the_cpu():
        # A processor with units for it has a line more.
        assert told.startswith(said)
    else:
        # The rows of the devices that are here are another machine's than README's.
        (row,) = re.findall(r"cpu N of N GiB free .*? always present", said)
        assert row in told


def test_the_scanner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = block("conformance scan")
    project = tmp_path / "path" / "to" / "project"
    project.mkdir(parents=True)
    (project / "train.py").write_text(
        'import torch\n\ndevice = "cuda" if torch.cuda.is_available() else "cpu"\n'
        "model = torch.nn.Linear(2, 2).to(device)\ntorch.cuda.empty_cache()\n",
        encoding="utf-8",
    )
    assert conformance(shown.last[1:]) == 1
    printed = capsys.readouterr()
    told = (printed.out + printed.err).replace(f"{shown.last[-1]}/", "")
    assert plain(told, []) == plain(shown.printed, [])


def test_python(capsys: pytest.CaptureFixture[str]) -> None:
    pattern = r"```python\n(.*?)```\n\n```text\n(.*?)```"
    ((code, printed),) = re.findall(pattern, TEXT, re.DOTALL)
    # A shorter song prints the same.
    exec(code.replace("duration=10", "duration=1").replace('"auto"', '"cpu"'), {})
    assert capsys.readouterr().out == printed


@pytest.mark.soak
def test_the_simulated_mac() -> None:
    shown = block("simulate mps --")
    before, _, after = shown.commands[-1].partition(" -- ")
    assert shlex.split(before)[0] == ".venv/bin/conformance"
    run = subprocess.run(
        [sys.executable, "-m", "conformance", *shlex.split(before)[1:], "--",
         sys.executable, *shlex.split(after)[1:]],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert plain(run.stderr + run.stdout, shown.last) == plain(shown.printed, shown.last)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_first_song_from_nothing(tmp_path: Path) -> None:
    """The whole line in a fresh checkout, which installs from the network."""
    shown = block(".venv/bin/acestep generate")
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x"], input=archive, cwd=tmp_path, check=True)
    run = subprocess.run(
        ["bash", "-c", " && ".join(shown.commands)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert plain(run.stdout + run.stderr, shown.last).endswith(
        plain(shown.printed.splitlines()[-1], shown.last)
    )


def test_every_command_of_the_text_can_be_typed() -> None:
    """Its own words are parsed; nothing is run."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", INLINE)]
    commands = [span for span in spans if re.match(r"(\.venv/bin/)?acestep \w+ [^-]", span)]
    assert len(commands) >= 3
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[-1] == "-o":
            arguments.append("out")
        build_parser().parse_args(arguments)


def test_every_option_of_the_command_line_s_section_exists() -> None:
    section = INLINE.split("## More from the command line")[1].split("\n## ")[0]
    (action,) = (
        one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)
    )
    known = {option for one in action.choices.values() for option in one._option_string_actions}
    named = {word for span in re.findall(r"`([^`]+)`", section) for word in span.split()}
    options = {word for word in named if re.fullmatch(r"--[a-z][a-z-]+", word)}
    assert len(options) > 10
    assert not options - known
