"""Puts the code of one commit of a repository into a folder, without touching the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

_LINK = b"120000"


class CheckoutError(ValueError):
    """There is no such repository or commit; the message is one line."""


def opened(asked: str, scratch: Path) -> tuple[str, Path]:
    """The name and the folder of a checkout that is written `[NAME=]FOLDER[@COMMIT]`.

    Args:
        asked: what is written.
        scratch: where a commit's files are put.

    Raises:
        CheckoutError: no such folder, repository or commit.
    """
    name, equals, where = asked.partition("=")
    name, where = (
        (name, where) if equals else (Path(asked).name or Path(asked).resolve().name, asked)
    )
    folder, at, commit = where.rpartition("@")
    if not at or Path(where).is_dir():
        if not Path(where).is_dir():
            raise CheckoutError(f"{where}: no such folder; give a checkout as FOLDER[@COMMIT]")
        return name, Path(where).absolute()
    export(Path(folder or "."), commit, scratch)
    return name, scratch


def export(repository: Path, commit: str, folder: Path) -> list[str]:
    """Write every file of a commit below `folder`.

    Args:
        repository: a checkout, or a repository without one.
        commit: anything that git understands.
        folder: where to; it need not exist.

    Returns:
        Files of the commit that the repository does not hold, as partial copies may lack some.

    Raises:
        CheckoutError: no such repository or commit.
    """
    git = ["git", "-C", str(repository)]
    listed = subprocess.run([*git, "ls-tree", "-r", "-z", commit], capture_output=True, check=False)
    if listed.returncode != 0:
        told = (listed.stderr.decode("utf-8", "replace").splitlines() or ["git failed"])[-1]
        raise CheckoutError(f"{repository}@{commit}: {told}; give a checkout and a commit of it")
    missing = []
    with subprocess.Popen(
        [*git, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as batch:
        assert batch.stdin is not None  # both are pipes
        assert batch.stdout is not None
        for entry in filter(None, listed.stdout.split(b"\0")):
            about, _, name = entry.partition(b"\t")
            mode, kind, blob = about.split()
            if kind != b"blob" or mode == _LINK:
                continue
            batch.stdin.write(blob + b"\n")
            batch.stdin.flush()
            answer = batch.stdout.readline().split()
            path = name.decode("utf-8", "surrogateescape")
            if answer[1] == b"missing":
                missing.append(path)
                continue
            data = batch.stdout.read(int(answer[2]))
            batch.stdout.read(1)
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        batch.stdin.close()
    return missing
