"""Every word of the page is in every catalogue, and every key that the code uses exists."""

from __future__ import annotations

import re
import string
from html import escape
from importlib.resources import files
from pathlib import Path

import pytest

from acestep.errors import RequestError
from acestep.gradio_ui.interfaces.results import notice
from acestep.gradio_ui.texts import LANGUAGES, texts
from acestep.song.request import Request

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
        and not key.startswith("problem.")
        and not any(key.startswith(prefix) for prefix in prefixes if prefix)
        and key.partition(".")[0] not in parts
    }
    assert not unused


def test_an_unknown_language_is_english() -> None:
    assert texts("tlh").language == "en"


def test_every_known_problem_is_a_sentence_of_the_code() -> None:
    """Literals that run on over lines are joined, and every field is the same."""
    package = Path(str(files("acestep")))
    code = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    code = code.replace("{unit}", " seconds").replace('MAX_DURATION, "s"', "")
    joined = re.sub(r"\"\s*\+?\s*f?\"", "", code)
    bare = re.sub(r"\{[^{}]*\}", "{}", joined)
    for key, text in ENGLISH.items():
        if key.startswith("problem.") and key not in ("problem.range_s", "problem.range"):
            sentence = re.sub(r"\{[^{}]*\}", "{}", text)
            end = sentence.removesuffix("{}")
            assert end in bare, key


def refusal(request: Request) -> str:
    with pytest.raises(RequestError) as caught:
        request.validated(("text2music", "cover"), 48000)
    return str(caught.value)


@pytest.mark.parametrize("language", ["zh", "ja"])
@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (Request(" ", (1,)), []),
        (Request("a", (1,), key="H major"), ["H major"]),
        (Request("a", (1,), key="lyrics"), ["lyrics"]),
        (Request("a", (1,), time_signature="5"), ["5", "2, 3, 4, 6"]),
        (Request("a", (1,), duration=0.1), ["0.1", "0.5", "600"]),
        (Request("a", (1,), bpm=999), ["999", "30", "300"]),
        (Request("a", (1,), task="lego"), ["lego", "text2music, cover"]),
    ],
)
def test_refusals_are_told_in_the_pages_language(
    language: str, request_: Request, kept: list[str]
) -> None:
    english = refusal(request_)
    told = texts(language).problem(english)
    assert told != english
    assert all(part in told for part in kept), told
    assert not re.search(r"[a-z]{4,} [a-z]{4,}", told), told
    assert texts("en").problem(english) == english
    shown = notice(texts(language), english, error=True)
    assert escape(told) in shown


def test_what_no_catalogue_knows_is_told_as_it_is() -> None:
    for sentence in ("a new problem", "x" * 5000 + " is out of range; expected 1 to 2"):
        assert texts("ja").problem(sentence) == sentence
