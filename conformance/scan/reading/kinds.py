"""What kind of file a name stands for, and which files that are not Python hold settings at all."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from functools import lru_cache

PYTHON = (".py", ".pyi", ".pyw", ".ipynb")
#: Kinds by the end of the name; JSON and TOML are read with the standard library alone.
_ENDINGS = {
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".json": "json",
    ".sh": "shell",
    ".bash": "shell",
    ".zsh": "shell",
    ".mk": "make",
    ".dockerfile": "docker",
}
OTHERS = tuple(_ENDINGS)
_NAMES = {
    "Makefile": "make",
    "makefile": "make",
    "GNUmakefile": "make",
    "Dockerfile": "docker",
    "Containerfile": "docker",
    "setup.cfg": "cfg",
    "Pipfile": "toml",
}
_REQUIREMENTS = re.compile(r"(?:.*[-_.])?(?:requirements?|reqs?)(?:[-_.].*)?\.(?:txt|in)\Z", re.I)
#: Files for one machine, and files that hold data: nobody sets a device in them.
_LOCKED = re.compile(r"(?:.*[-_.])?lock(?:file)?(?:[-_.].*)?\Z|.*\.lock\.\w+\Z", re.I)
_DATA = (
    "tokenizer*.json", "vocab*.json", "merges*.json", "special_tokens_map.json",
    "added_tokens.json", "package.json", "tsconfig*.json", "jsconfig*.json", "manifest.json",
    "*.index.json", "*.geojson", "*.schema.json", "composer.json", "metadata.json",
    "mkdocs.y*ml", "codecov.y*ml", "_config.yml", "CITATION*", "openapi*", "swagger*",
    "azure-pipelines*", "appveyor.y*ml", "buildspec.y*ml", "cloudbuild.y*ml",
)  # fmt: skip
#: More bytes than this are no settings that a person wrote, so the file is not even opened.
LARGEST = {"json": 64_000, "yaml": 512_000, "toml": 512_000}
#: So many JSON files in one folder are a data set.
MOST_JSON = 100


@lru_cache(maxsize=4096)
def kind_of(path: str) -> str:
    """``python``, ``notebook`` or the kind of a file that is not Python; empty for any other.

    Lock files, vocabularies and files of other tools are none of a kind: they set no device.
    """
    name = os.path.basename(path)
    if name.endswith(PYTHON):
        return "notebook" if name.endswith(".ipynb") else "python"
    kind = _NAMES.get(name) or _ENDINGS.get(os.path.splitext(name)[1], "")
    if not kind and name.startswith(("Dockerfile", "Containerfile")):
        kind = "docker"
    if not kind and _is_requirements(path, name):
        kind = "requirements"
    if kind and _LOCKED.match(os.path.splitext(name)[0]):
        return ""
    return "" if any(fnmatchcase(name, pattern) for pattern in _DATA) else kind


def _is_requirements(path: str, name: str) -> bool:
    folder = os.path.basename(os.path.dirname(path))
    return _REQUIREMENTS.match(name) is not None or (
        folder == "requirements" and name.endswith((".txt", ".in"))
    )


def is_other(path: str) -> bool:
    """Whether a file that is not Python is of a kind that is read."""
    return kind_of(path) not in ("", "python", "notebook")
