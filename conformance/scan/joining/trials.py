"""What a module tries out when it is run by itself, which its project never does."""

from __future__ import annotations

import re

_BLOCK = re.compile(rb"(?m)^if __name__ == [\"']__main__[\"']:")
#: Inputs that are made up, or what says what it is.
_TRIED = re.compile(rb"torch\.(?:rand\w*|ones|zeros|FloatTensor)\(|\b[Tt]esting [Pp]urposes?\b")
#: A program: it reads what it was called with, or says how it is called.
_PROGRAM = re.compile(
    rb"\b(?:absl|argparse|argv|click|docopt|fire|getopt|hydra|optparse|parse_args|typer|tyro)\b|main\("
)


def trial_from(data: bytes) -> int | None:
    """The line from which a module only tries itself out, None where it is a program.

    That its project imports the module is for the caller to know.
    """
    block = _BLOCK.search(data)
    if block is None or _PROGRAM.search(data) or not _TRIED.search(data, block.end()):
        return None
    return data.count(b"\n", 0, block.start()) + 1
