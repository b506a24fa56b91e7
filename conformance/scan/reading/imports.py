"""What a file imports, read from its bytes: for every file, so without a syntax tree."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

#: Packages that no project is, asked for by nearly every file.
_ELSEWHERE = sys.stdlib_module_names | {"numpy", "pytest", "setuptools"}
_STATEMENT = re.compile(
    rb"(?:from[ \t]+([.\w]+)[ \t]+)?import\b[ \t]*(\([^)]*\)|(?:[^\n;#\\]|\\\r?\n)+)"
)
_COMMENT = re.compile(rb"#[^\n]*")


@dataclass(frozen=True, slots=True)
class Import:
    """A name that a file imports: ``from MODULE import NAME as LOCAL``.

    ``module`` keeps its leading dots; ``name`` is empty for ``import MODULE``. What stands at the
    margin is imported whenever the file is; what is ``inner`` may stand behind a test.
    """

    module: str
    name: str
    local: str
    inner: bool

    def to_text(self) -> str:
        """For the cache, as short as it gets."""
        return f"{'>' if self.inner else ''}{self.module}:{self.name}:{self.local}"

    @classmethod
    def from_text(cls, text: str) -> Import:
        """Inverse of :meth:`to_text`; raises ValueError on another text."""
        inner = text.startswith(">")
        module, name, local = text[inner:].split(":")
        return cls(module, name, local, inner)


def imports_of(data: bytes) -> list[str]:
    """The imports of a file that may lie in its own project, each as its text.

    A statement inside a docstring is taken for one: who goes by this looks again, in the tree.
    """
    found: list[str] = []
    at = data.find(b"import")
    while at >= 0:
        end = at + 6
        start = data.rfind(b"\n", 0, at) + 1
        head = data[start:at].lstrip()
        if head.startswith(b"from") or not head or head.endswith((b": ", b"; ", b":", b";")):
            first = start + (at - start - len(head))
            if not head.startswith(b"from"):
                first = at
            match = _STATEMENT.match(data, first)
            if match is not None and match.end() > at:
                _take(match, first > start, found)
                end = max(end, match.end())
        at = data.find(b"import", end)
    return found


def _take(match: re.Match[bytes], inner: bool, found: list[str]) -> None:
    module = (match[1] or b"").decode()
    if module and module.partition(".")[0] in _ELSEWHERE:
        return
    names = match[2]
    if b"#" in names:
        names = _COMMENT.sub(b"", names)
    mark = ">" if inner else ""
    for item in names.strip(b"()").replace(b"\\", b" ").split(b","):
        words = item.decode("utf-8", "replace").split()
        if len(words) not in (1, 3):
            continue
        name, local = words[0], words[-1]
        if b":" in item or (local != "*" and not local.replace(".", "").isidentifier()):
            continue  # prose that begins with the word
        if module:
            found.append(f"{mark}{module}:{name}:{local}")
        elif name.partition(".")[0] not in _ELSEWHERE:
            found.append(f"{mark}{name}::{local}")
