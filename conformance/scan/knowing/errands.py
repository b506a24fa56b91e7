"""What the path of a file that is not Python says it is for: whose device it may name."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from conformance.scan.findings import Severity
from conformance.scan.knowing.vocabulary import named_backends

#: Folders whose files set no device for a user: tests, data, texts and other people's code.
_NOBODYS = frozenset(
    {
        "test", "tests", "testing", "fixtures", "fixture", "testdata", "test_data", "data", "dataset",
        "datasets", "assets", "locale", "locales", "i18n", "vendor", "vendored", "third_party",
        "thirdparty", "3rdparty", "external", "node_modules", "translations", "ci", "workflows",
        "__tests__", "snapshots", "golden", "cassettes",
    }
)  # fmt: skip
#: Folders and names of what a reader copies and edits.
_TO_COPY = re.compile(
    r"(?:^|[/._-])(?:examples?|templates?|samples?|docs?|demos?|recipes?|tutorials?|benchmarks?|scripts?)(?=[/._-]|$)",
    re.I,
)
_CARD = re.compile(
    r"(?:^|[/._-])(?:gpus?|[avhbl]\d{2,3}s?|rtx\d*|slurm|sbatch|runpod|colab|modal|docker|dockerfile|multi_?node|\d+gpus?)(?=[/._-]|$)",
    re.I,
)


def highest(path: str) -> Severity | None:
    """The gravest that a file's finding may be: None where the file speaks for nobody's machine."""
    parts = PurePosixPath(path).parts
    if any(part.lower() in _NOBODYS or part.startswith(".") for part in parts[:-1]):
        return None
    if parts and parts[-1].startswith("."):
        return None
    if says_cuda(path):
        return Severity.NOTE
    return Severity.WARNING if _TO_COPY.search(path) else Severity.ERROR


def says_cuda(words: str) -> bool:
    """Whether a path, an extra's name or a test speaks of CUDA or of a card that has it."""
    return _CARD.search(words) is not None or "cuda" in named_backends(
        re.sub(r"[./ -]", "_", words)
    )


def asks_where(test: str) -> bool:
    """Whether the test of a block in a script asks what machine it is on."""
    return (
        says_cuda(test)
        or re.search(r"uname|darwin|ostype|device|cpu|mps|rocm|platform|\bos\b", test, re.I)
        is not None
    )
