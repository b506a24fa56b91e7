"""JSON read for its values and their places: the standard library judges it, and forgets where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from conformance.scan.reading.files.pieces import FileError, Setting

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


def settings(text: str) -> list[Setting]:
    """Every text, number and truth; raises FileError."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(f"not JSON: {error.msg}", error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"not JSON: {error}") from None
    return list(_walk(text))


def _walk(text: str) -> Iterator[Setting]:
    """One pass over the tokens of a valid text, with the keys that lead to where it stands."""
    keys: list[str] = []
    lists: list[int] = []  # the number of the next item, or -1 in an object
    key: str | None = None
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "[{":
            if lists:
                keys.append(_next(lists, key))
                key = None
            lists.append(0 if token == "[" else -1)
        elif token in "]}":
            lists.pop()
            if lists:
                keys.pop()
        elif token == ":" or token == ",":
            continue
        elif lists and lists[-1] < 0 and key is None:
            key = json.loads(token)
        else:
            inner = (_next(lists, key),) if lists else ()
            value = json.loads(token) if token[0] == '"' else token
            key = None
            yield Setting((*keys, *inner), str(value), match.start(), match.end())


def _next(lists: list[int], key: str | None) -> str:
    if key is not None:
        return key
    lists[-1] += 1
    return f"[{lists[-1] - 1}]"
