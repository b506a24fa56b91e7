"""The page's words: one catalogue a language, the same keys in each."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

LANGUAGES = {"en": "English", "zh": "中文", "ja": "日本語"}

_PROBLEM = "problem."
# Fields that hold a word of ours; the others quote numbers, names or what a visitor typed.
_WORDS = frozenset({"name", "advice"})
# A sentence may quote what a visitor typed; much longer ones are no sentence of ours.
_LONGEST = 1000


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

    def problem(self, sentence: str) -> str:
        """A refusal in this language, where the catalogue knows it, else as it is.

        The package's errors are English sentences; the English catalogue holds their patterns.
        """
        if self.language == "en" or len(sentence) > _LONGEST:
            return sentence
        for key, pattern in _patterns():
            if found := pattern.fullmatch(sentence):
                fields = found.groupdict()
                for name in _WORDS & fields.keys():
                    word = fields[name]
                    fields[name] = self.table.get(f"problem_word.{word}", word)
                return self(key, **fields)
        return sentence

    def get(self, key: str) -> str | None:
        """The text of a key that a component may lack, such as a placeholder."""
        return self.table.get(key)


@cache
def texts(language: str) -> Texts:
    """The catalogue of a language; English for one that the page does not have."""
    language = language if language in LANGUAGES else "en"
    catalogue = files(__package__).joinpath("catalogues", f"{language}.json")
    return Texts(language, json.loads(catalogue.read_text(encoding="utf-8")))


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Keys of the known problems, each with the pattern of its English sentence."""
    found = []
    for key, text in texts("en").table.items():
        if key.startswith(_PROBLEM):
            parts = [
                re.escape(literal) + (f"(?P<{name}>.+?)" if name else "")
                for literal, name, _, _ in string.Formatter().parse(text)
            ]
            found.append((key, re.compile("".join(parts))))
    return found
