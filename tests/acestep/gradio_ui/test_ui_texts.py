"""Every word of the page is in every catalogue, and every key that the code uses exists."""

from __future__ import annotations

import re
import string
from importlib.resources import files
from pathlib import Path

import pytest

from acestep.gradio_ui.texts import LANGUAGES, texts

CODE = Path(str(files("acestep.gradio_ui")))
ENGLISH = texts("en").table


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogues_hold_the_same_keys_and_fields(language: str) -> None:
    table = texts(language).table
    assert set(table) == set(ENGLISH)
    for key, text in table.items():
        assert text.strip(), key
        assert placeholders(text) == placeholders(ENGLISH[key]), key


def test_every_key_is_used_and_every_used_key_is_there() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in CODE.rglob("*.py"))
    asked = set(re.findall(r"words(?:\.get)?\(\s*\"([a-z_.0-9 ]+)\"", code))
    assert asked <= set(ENGLISH), asked - set(ENGLISH)
    prefixes = set(re.findall(r"f[\"']([a-z_.]+)\{", code))
    parts = set(re.findall(r"parts\.add\(\s*\"([a-z_]+)\"", code))
    for name in parts:
        assert f"{name}.label" in ENGLISH, name
    unused = {
        key
        for key in ENGLISH
        if key not in asked
        and not any(key.startswith(prefix) for prefix in prefixes if prefix)
        and key.partition(".")[0] not in parts
    }
    assert not unused


def test_an_unknown_language_is_english() -> None:
    assert texts("tlh").language == "en"
