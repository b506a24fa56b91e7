"""What the path of a file says about the backend that it is written for."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from conformance.scan.knowing.facts import NOTHING, Facts, known
from conformance.scan.knowing.packages import PROVIDERS
from conformance.scan.knowing.vocabulary import declared_backends

_TESTS = frozenset({"tests", "test", "testing"})
#: How files are named that hold tests, or what tests share, in either of the customary ways.
_TEST_FILE = re.compile(r"(?:test_.*|conftest|.*_tests?|.*_test_(?:helpers?|utils?|support))\Z")

_BENCHMARK = re.compile(r"(?:.*_)?(?:bench|benchmarks?|microbenchmarks?|profiling)(?:_.*)?\Z")


def is_test(path: str) -> bool:
    """Whether a file is a test by its name or folder."""
    *folders, name = path.split("/")
    stem = name.rpartition(".")[0] or name
    return not _TESTS.isdisjoint(folders) or _TEST_FILE.match(stem) is not None


def is_benchmark(path: str) -> bool:
    """Whether a file measures: on the machine that its author has, and for that one."""
    return any(_BENCHMARK.match(part) for part in path.removesuffix(".py").split("/"))


def _path_backends(path: str) -> list[str]:
    backends: set[str] = set()
    for part in PurePosixPath(path).parts:
        backends.update(declared_backends(part.removesuffix(".py")))
    for package, backend in PROVIDERS.items():
        if f"/{package.replace('.', '/')}/" in f"/{path}":
            backends.add(backend)
    return sorted(backends)


def declared_by(path: str) -> str:
    """What a path adds to the identity of a file's content: the backends that it declares, and
    whether it is that of a test or a benchmark."""
    kinds = ["test"] * is_test(path) + ["bench"] * is_benchmark(path)
    return "+".join([*_path_backends(path), *kinds])


def path_facts(path: str) -> Facts:
    """What the parts of a path say about the backend that the file is written for."""
    backends = _path_backends(path)
    return known("name", *backends) if backends else NOTHING
