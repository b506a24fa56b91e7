"""YAML read for its scalars and their places, by PyYAML's composer: nothing is constructed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from conformance.scan.reading.files.pieces import FileError, Setting

if TYPE_CHECKING:
    import yaml

#: An alias may stand for a tree again and again; what was seen is not read twice.
_DEEPEST = 60


def settings(text: str) -> list[Setting]:
    """Every scalar of every document; raises FileError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = list(_documents(text, loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "unreadable"
        raise FileError(f"not YAML: {reason}", mark.line + 1 if mark else 1) from None
    except ValueError as error:
        raise FileError(f"not YAML: {error}") from None
    return found


def _documents(text: str, loader: type[yaml.SafeLoader]) -> Iterator[Setting]:
    import yaml

    for document in yaml.compose_all(text, Loader=loader):
        if document is not None:
            yield from _scalars(document, (), set())


def _scalars(node: yaml.Node, keys: tuple[str, ...], seen: set[int]) -> Iterator[Setting]:
    import yaml

    if isinstance(node, yaml.ScalarNode):
        yield Setting(keys, str(node.value), node.start_mark.index, node.end_mark.index)
        return
    if id(node) in seen or len(keys) > _DEEPEST:
        return
    seen.add(id(node))
    for number, child in enumerate(node.value):
        if isinstance(node, yaml.MappingNode):
            name = child[0].value if isinstance(child[0], yaml.ScalarNode) else "?"
            yield from _scalars(child[1], (*keys, str(name)), seen)
        else:
            yield from _scalars(child, (*keys, f"[{number}]"), seen)
