"""Shell scripts, Makefiles and Dockerfiles as commands, with the blocks that they stand in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from conformance.scan.reading.files.lines import logical_lines
from conformance.scan.reading.files.pieces import Command

_HEREDOC = re.compile(r"<<-?\s*[\"']?(\w+)[\"']?")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)\Z", re.DOTALL)
_MAKE_VARIABLE = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)\s*[:?+]?=\s*(.*?)\s*(?:#.*)?\Z")
_TARGET = re.compile(r"([^\s:=#][^:=#]*):(?!=)")
_OPENS = re.compile(r"\s*(?:if|case|while|until|for)\b(.*)")
_TURNS = re.compile(r"\s*(?:elif\b(.*)|else\b)")
_CLOSES = re.compile(r"\s*(?:fi|esac|done)\b")
_BRANCH = re.compile(r"\s*\(?([\w.*?|/\"'$+-]+(?:\s*\|\s*[\w.*?\"'-]+)*)\)\s*(.*)")
_FUNCTION = re.compile(r"\s*(?:function\s+)?([\w-]+)\s*\(\)\s*\{?|\s*function\s+([\w-]+)")
#: What ends a command, unless it stands in quotes, which are passed over.
_SPLITS = re.compile(r"\\.|\"(?:[^\"\\]|\\.)*\"|'[^']*'|(&&|\|\||;;|[;|])", re.DOTALL)
_PREFIXES = frozenset(
    {
        "env",
        "export",
        "sudo",
        "time",
        "nohup",
        "exec",
        "command",
        "then",
        "do",
        "else",
        "!",
        "{",
        "local",
        "declare",
        "readonly",
        "srun",
    }
)


def commands(text: str) -> Iterator[Command]:
    """Commands of a shell script, in order; lines that are no whole command are passed over."""
    around: list[str] = []
    function = ""
    ends: str | None = None
    for line, start in logical_lines(text):
        if ends is not None:
            ends = None if line.strip() == ends else ends
            continue
        heredoc = _HEREDOC.search(line)
        if heredoc is not None and "<<<" not in line:
            ends = heredoc[1]
        named = _FUNCTION.match(line)
        if named is not None:
            function = named[1] or named[2]
        elif line.startswith("}"):
            function = ""
        skip = _block(line, around)
        inside = tuple([*around, function] if function else around)
        yield from _split(line[skip:], start + skip, inside)


def _block(line: str, around: list[str]) -> int:
    """Keep the tests of the blocks that a line opens, turns or closes; where its commands start."""
    opens, turns = _OPENS.match(line), _TURNS.match(line)
    if opens is not None:
        closed = re.search(r"\b(?:fi|done|esac)\b", line) is not None
        if not closed:
            around.append(opens[1])
    elif turns is not None and around:
        around[-1] += f" {turns[1] or ''}"
    elif _CLOSES.match(line):
        if around:
            around.pop()
    elif around and " in" in around[-1]:
        branch = _BRANCH.match(line)
        if branch is not None:
            around[-1] = f"{around[-1].partition(' in')[0]} in {branch[1]}"
            return branch.start(2)
    return 0


def _split(line: str, start: int, around: tuple[str, ...]) -> Iterator[Command]:
    """The commands of one line; a test before ``&&`` speaks for what follows."""
    if not line.strip() or line.lstrip().startswith("#"):
        return
    at = 0
    before: tuple[str, ...] = ()
    for match in [*(found for found in _SPLITS.finditer(line) if found[1]), None]:
        end = match.start() if match is not None else len(line)
        part = line[at:end]
        made = _command(part, start + at, (*around, *before))
        if made is not None:
            yield made
        if match is not None:
            before = (*before, part) if match[0] in ("&&", "||") else ()
            at = match.end()


def _command(part: str, start: int, around: tuple[str, ...]) -> Command | None:
    try:
        # A backslash at the very end joins nothing.
        words = shlex.split(part.rstrip().rstrip("\\"), comments=True)
    except ValueError:
        return None  # a quote that goes on in the next line
    assigned: list[tuple[str, str]] = []
    while words and (words[0] in _PREFIXES or _ASSIGNMENT.match(words[0])):
        match = _ASSIGNMENT.match(words.pop(0))
        if match is not None:
            assigned.append((match[1], match[2]))
    if not words and not assigned:
        return None
    lead = len(part) - len(part.lstrip())
    return Command(tuple(words), start + lead, start + len(part.rstrip()), around, tuple(assigned))


def make_commands(text: str) -> Iterator[Command]:
    """Commands of a Makefile's recipes, and its variables as assignments."""
    around: list[str] = []
    target = ""
    for line, start in logical_lines(text):
        plain = line.strip()
        if line.startswith("\t"):
            lead = len(line) - len(line.lstrip("\t@-+ "))
            inside = (*around, target) if target else tuple(around)
            yield from _split(line[lead:].replace("$$", "$"), start + lead, inside)
        elif plain.startswith(("ifeq", "ifneq", "ifdef", "ifndef")):
            around.append(plain)
        elif plain.startswith("else") and around:
            around[-1] += " " + plain
        elif plain.startswith("endif") and around:
            around.pop()
        elif (variable := _MAKE_VARIABLE.match(line)) is not None:
            end = start + len(line.rstrip())
            yield Command((), start, end, tuple(around), ((variable[1], variable[2]),))
        elif (rule := _TARGET.match(line)) is not None:
            target = rule[1]


def docker_commands(text: str) -> Iterator[Command]:
    """Instructions of a Dockerfile, each as one command that begins with its name."""
    for line, start in logical_lines(text):
        plain = line.strip()
        if plain and not plain.startswith("#"):
            lead = line.index(plain[0])
            yield Command(tuple(plain.split()), start + lead, start + len(line.rstrip()))
