"""What files that are not Python are made of, each piece with its place in the text."""

from __future__ import annotations

from dataclasses import dataclass


class FileError(Exception):
    """The text is not what the file's name says; ``line`` counts from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and the keys that lead to it; ``[0]`` is the first item of a list.

    ``start`` and ``end`` are character offsets of the value, its quotes included. ``origin`` tells
    settings of a file (empty) from options of a command.
    """

    keys: tuple[str, ...]
    value: str
    start: int
    end: int
    origin: str = ""

    @property
    def key(self) -> str:
        """The last key that is not an index."""
        return next((key for key in reversed(self.keys) if not key.startswith("[")), "")

    @property
    def owner(self) -> tuple[str, ...]:
        """The keys of the mapping that the setting lies in."""
        keys = self.keys
        while keys and keys[-1].startswith("["):
            keys = keys[:-1]
        return keys[:-1]


@dataclass(frozen=True, slots=True)
class Asked:
    """One line that asks an installer for a package, or gives it an option.

    ``group`` names the extra or group that it belongs to, empty for what everybody gets, and
    ``platforms`` where it counts ("" is everywhere). ``installer`` is ``pip`` or ``conda``.
    """

    text: str
    start: int
    end: int
    group: str = ""
    installer: str = "pip"
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """Words of one command line of a script, without their quotes, and what surrounds it.

    ``around`` holds the tests and names of the blocks that it stands in.
    """

    words: tuple[str, ...]
    start: int
    end: int
    around: tuple[str, ...] = ()
    assigned: tuple[tuple[str, str], ...] = ()
