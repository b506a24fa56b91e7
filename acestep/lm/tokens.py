"""The tokens that make a 5 Hz language model of a plain one, read from its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.checkpoint.files import read_json
from acestep.errors import CheckpointError, first_line

CODEBOOK_SIZE = 64000
"""Audio codes of ACE-Step 1.5: FSQ levels 8 * 8 * 8 * 5 * 5 * 5."""

_CONTROLS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class AudioTokens:
    """Token ids that matter to the planner.

    Attributes:
        codes: id of `<|audio_code_N|>` at index N.
        think_open, think_close: ids of the tags of the block.
        end: id that ends a turn.
        text: ids below this make up all text, or None where codes and text are mixed.
    """

    codes: tuple[int, ...]
    think_open: int
    think_close: int
    end: int
    text: int | None

    @property
    def is_run(self) -> bool:
        """Whether the codes' ids follow each other."""
        return self.codes == tuple(range(self.codes[0], self.codes[0] + len(self.codes)))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a language model.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        return _quick(folder) or AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001
        # The tokenizer libraries raise their own kinds, down to plain Exception.
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be loaded ({first_line(error)})"
        ) from None


def _quick(folder: Path) -> Any:
    """The tokenizer from its one file, or None where settings or templates need the library.

    `from_pretrained` copies each of the 64,000 audio codes' entries several times: 4.2 s of
    computing against 0.7.
    """
    from transformers import PreTrainedTokenizerFast

    file, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        return None
    settings = read_json(settings_file) if settings_file.is_file() else {}
    template_file = folder / "chat_template.jinja"
    template = settings.get("chat_template")
    if template_file.is_file():
        template = template_file.read_text(encoding="utf-8")
    entries = {name: settings[name] for name in _CONTROLS if settings.get(name)}
    # An entry is the token, or a dict with it.
    controls = {
        name: entry.get("content") if isinstance(entry, dict) else entry
        for name, entry in entries.items()
    }
    if not all(isinstance(value, str) for value in (template, *controls.values())):
        return None
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **controls)
    tokenizer.chat_template = template
    return tokenizer


def audio_tokens(tokenizer: Any, folder: Path) -> AudioTokens:
    """The ids of the tokens that make a 5 Hz language model of a plain one.

    Raises:
        CheckpointError: some of them are missing.
    """
    vocabulary = tokenizer.get_vocab()
    names = [f"<|audio_code_{n}|>" for n in range(CODEBOOK_SIZE)]
    others = ["<think>", "</think>", "<|im_end|>"]
    missing = [name for name in (*others, *names) if name not in vocabulary]
    if missing:
        raise CheckpointError(
            f"{folder}: not a 5 Hz language model; its tokenizer has no {missing[0]}"
        )
    ids = [int(vocabulary[name]) for name in others]
    codes = tuple(int(vocabulary[name]) for name in names)
    # Added last, the codes are the end of the vocabulary, and text is all before them.
    at_end = min(codes) == len(vocabulary) - len(codes) and max(codes) == len(vocabulary) - 1
    return AudioTokens(codes, ids[0], ids[1], ids[2], min(codes) if at_end else None)
