"""What a module tries out when it is run by itself, which its project never does."""

from __future__ import annotations

import ast
import re

from conformance.scan.reading.parser import parsed

#: Inputs that are made up, or what says what it is.
_TRIED = re.compile(r"torch\.(?:rand\w*|ones|zeros|FloatTensor)\(|\b[Tt]esting [Pp]urposes?\b")
#: A program: it reads what it was called with, says how it is called, or trains.
_PROGRAM = re.compile(
    r"\b(?:absl|argparse|argv|click|docopt|fire|getopt|hydra|optparse|parse_args|typer|tyro)\b"
    r"|main\(|[Ll]oader\b|\boptim\b"
)


def trial_of(data: bytes) -> range:
    """The lines of a module that only try it out, none where it is a program.

    That its project imports the module is for the caller to know.
    """
    text = data.decode("utf-8", "replace")
    if _PROGRAM.search(text) is not None or "__main__" not in text:
        return range(0)
    for node in parsed(text).body:
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            shown = "\n".join(text.split("\n")[lines.start - 1 : lines.stop - 1])
            return lines if _TRIED.search(shown) is not None else range(0)
    return range(0)
