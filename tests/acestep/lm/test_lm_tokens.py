"""The language model's tokenizer from its one file is the one that transformers makes of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from acestep.errors import CheckpointError
from acestep.lm.demo import planner_tokenizer
from acestep.lm.tokens import _quick, load_tokenizer

TEXTS = (
    "<|im_start|>user\nhello é 你好 ♪<|im_end|>\n<think>\nbpm: 3\n</think>",
    "a<|audio_code_5|><|audio_code_6|> <|audio_code_7|>b",
    "",
)
MESSAGES = [{"role": "system", "content": "one"}, {"role": "user", "content": "two"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As transformers writes it, with a few codes: with all of them it takes seconds to read."""
    tokenizer = planner_tokenizer(codes=False)
    codes = [AddedToken(f"<|audio_code_{n}|>", normalized=False, special=True) for n in range(9)]
    tokenizer.add_tokens(codes)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def older(folder: Path) -> None:
    """As earlier versions wrote it: template and tokens inside the settings."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    template = folder / "chat_template.jinja"
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    settings |= {
        "chat_template": template.read_text(),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": {"__type": "AddedToken", "content": settings["eos_token"], **entry},
        "bos_token": None,
        "added_tokens_decoder": {
            str(token["id"]): {"content": token["content"], "special": token["special"], **entry}
            for token in added
        },
    }
    settings.pop("backend", None)
    template.unlink()
    file.write_text(json.dumps(settings))


@pytest.mark.parametrize("change", [None, older])
def test_it_is_the_tokenizer_of_transformers(folder: Path, change: Any) -> None:
    if change is not None:
        change(folder)
    quick, whole = _quick(folder), AutoTokenizer.from_pretrained(folder)
    assert quick is not None
    assert quick.get_vocab() == whole.get_vocab()
    assert quick.get_added_vocab() == whole.get_added_vocab()
    assert quick.eos_token_id == whole.eos_token_id
    for text in TEXTS:
        ids = whole(text, add_special_tokens=False).input_ids
        assert quick(text, add_special_tokens=False).input_ids == ids
        for skipped in (False, True):
            expected = whole.decode(ids, skip_special_tokens=skipped)
            assert quick.decode(ids, skip_special_tokens=skipped) == expected
    for prompt in (True, False):
        expected = whole.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        found = quick.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        assert found == expected


def test_what_is_not_in_one_file_is_read_by_transformers(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert _quick(folder) is None
    assert load_tokenizer(folder).eos_token == "<|im_end|>"
    (folder / "tokenizer.json").unlink()
    assert _quick(folder) is None
    with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_damaged_settings_are_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not readable as JSON"):
        load_tokenizer(folder)
