"""The page's words: one catalogue a language, the same keys in each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

LANGUAGES = {"en": "English", "zh": "中文", "ja": "日本語"}


@dataclass(frozen=True)
class Texts:
    """One language's catalogue."""

    language: str
    table: Mapping[str, str] = field(repr=False)

    def __call__(self, key: str, **fields: object) -> str:
        """The text of a key, with its fields filled in.

        Raises:
            KeyError: the catalogue has no such key; a test keeps this from happening.
        """
        return self.table[key].format(**fields)

    def get(self, key: str) -> str | None:
        """The text of a key that a component may lack, such as a placeholder."""
        return self.table.get(key)


@cache
def texts(language: str) -> Texts:
    """The catalogue of a language; English for one that the page does not have."""
    language = language if language in LANGUAGES else "en"
    catalogue = files(__package__).joinpath("catalogues", f"{language}.json")
    return Texts(language, json.loads(catalogue.read_text(encoding="utf-8")))
