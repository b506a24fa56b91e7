"""The grammar that holds the model's text to its form, and the matcher that enforces it.

llguidance makes the masks. It builds them lazily, so that a new grammar (another tier,
other forced fields) costs milliseconds even with a vocabulary of 217 thousand tokens,
where xgrammar first runs over the whole vocabulary for every state of the automaton.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import fill_next_token_bitmask
from transformers.convert_slow_tokenizer import bytes_to_unicode

from acestep.errors import GenerationError
from acestep.lm.cot import FIELDS, KEYS, MIN_PLANNED_DURATION, lines_of
from acestep.song.request import BPM_RANGE, LANGUAGES, TIME_SIGNATURES

LYRIC_HEADING = "\n\n# Lyric\n"
_WORD_BITS = 32
_MOST_NEWLINES = 2
# The names of the fields, the values that are not free text, tags and heading: at most.
_OTHER_BYTES = 256

# What a caption may hold: anything printable that cannot end the block, begin a YAML comment
# or separate a key from its value. Line separators and the byte order mark are left out too.
_TEXT = r"[^\x00-\x1f\x7f-\x9f<>:#\u2028\u2029\ufeff\ufffe\uffff]"
_LYRIC_TEXT = r"[^\x00-\x1f\x7f-\x9f<>\u2028\u2029\ufeff\ufffe\uffff]"
_CAPTION = r'"caption: " FIRST_LINE ("\n  " MORE_LINE){0,LINES} "\n"'
# Tokens made of such text alone are allowed or refused together, which is what makes masks
# of free text cheap.
_SLICES = [_TEXT + "{1,10}", _TEXT + "{1,30}"]


@dataclass(frozen=True)
class Shape:
    """What the block holds and how long its free text may grow.

    Attributes:
        fields: names among `FIELDS` that the block has.
        known: fields whose value is given: the block holds exactly that.
        max_duration: longest song that may be planned, whole seconds.
        caption_lines: most lines of a caption.
        line_length: most characters in a line; YAML wraps at 80.
        lyric_lines: most lines of lyrics after the block, or None for no lyrics.
    """

    fields: Sequence[str] = FIELDS
    known: Mapping[str, Any] = field(default_factory=dict)
    max_duration: int = 600
    caption_lines: int = 12
    line_length: int = 120
    lyric_lines: int | None = None


def lark(shape: Shape, open_id: int, close_id: int, end_id: int) -> str:
    """The grammar in llguidance's dialect of Lark.

    Args:
        shape: what the block holds.
        open_id, close_id: tokens of `<think>` and `</think>`.
        end_id: token that ends the text when lyrics follow the block.
    """
    top = max(MIN_PLANNED_DURATION, shape.max_duration)
    terminals = {
        "bpm": _one_of(range(BPM_RANGE[0], BPM_RANGE[1] + 1)),
        "duration": _one_of(range(MIN_PLANNED_DURATION, top + 1)),
        "keyscale": _one_of(KEYS),
        "language": _one_of(LANGUAGES),
        "timesignature": _one_of(TIME_SIGNATURES),
    }
    rules, parts = [], []
    for name in FIELDS:
        if name not in shape.fields:
            continue
        if name in shape.known:
            parts.append(json.dumps(lines_of(name, shape.known[name]), ensure_ascii=False))
        elif name == "caption":
            parts.append(_CAPTION.replace("LINES", str(max(shape.caption_lines - 1, 0))))
            rules.append(rf"FIRST_LINE: /(?:[A-G]#|[\p{{L}}\p{{N}}]){_piece(shape.line_length)}/")
            rules.append(rf"MORE_LINE: /[^\x00-\x20\x7f-\xa0<>:#\u2028\u2029\u3000\ufeff"
                         rf"\ufffe\uffff]{_piece(shape.line_length)}/")  # fmt: skip
        else:
            parts.append(rf'"{name}: " {name.upper()} "\n"')
            rules.append(f"{name.upper()}: {terminals[name]}")
    start = f'<[{open_id}]> "\\n" {" ".join(parts)} <[{close_id}]>'
    if shape.lyric_lines is not None:
        heading = json.dumps(LYRIC_HEADING)
        start += rf" {heading} LYRIC (/\n{{1,2}}/ LYRIC){{0,{max(shape.lyric_lines - 1, 0)}}} <[{end_id}]>"
        rules.append(rf"LYRIC: /{_LYRIC_TEXT}{{1,{shape.line_length}}}/")
    return "\n".join([f"start: {start}", *rules]) + "\n"


def most_tokens(shape: Shape) -> int:
    """More tokens than any text of a shape can have: its bytes, and its tags."""
    characters = shape.caption_lines * (shape.line_length + 8)
    characters += (shape.lyric_lines or 0) * (shape.line_length + _MOST_NEWLINES)
    characters += sum(len(lines_of(name, value)) for name, value in shape.known.items())
    return 4 * characters + _OTHER_BYTES


class Constraint(Protocol):
    """Decides, token by token, what a batch may write next."""

    def masks(self) -> torch.Tensor:
        """Allowed tokens, one bit each: int32 `[batch, ceil(vocabulary / 32)]` on the host."""
        ...

    def consume(self, tokens: Sequence[int]) -> None:
        """Take note of the token that each item of the batch goes on with."""
        ...

    def forced(self, most: int) -> list[list[int]]:
        """What every item has to go on with, equally many tokens and no more than `most`.

        An item at its end goes on with anything.
        """
        ...

    @property
    def finished(self) -> bool:
        """Whether every item has come to its end."""
        ...


class Vocabulary:
    """A tokenizer in the form that the matchers need; made once for a model (about 1 s).

    Args:
        tokenizer: a fast tokenizer of transformers.
        size: ids below this may be written; the model may have more, or the tokenizer.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.size = size
        self.words = -(-size // _WORD_BITS)
        self.tokenizer = LLTokenizer(
            TokenizerWrapper(_TokenTable(tokenizer, size)), n_vocab=size, slices=_SLICES
        )


class _TokenTable:
    """A byte-level tokenizer as the bytes of its tokens.

    llguidance can read a tokenizer's own file, but needs half a minute for one with 64
    thousand added tokens. Added tokens are no text here: a grammar names them by number.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer = tokenizer
        to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
        added = set(tokenizer.get_added_vocab().values())
        self.eos_token_id = tokenizer.eos_token_id
        self.bos_token_id = None
        self.tokens = [b"<|unused_%d|>" % number for number in range(size)]
        vocabulary = {t: n for t, n in tokenizer.get_vocab().items() if n < size}
        for token, number in vocabulary.items():
            is_text = number not in added and all(character in to_byte for character in token)
            self.tokens[number] = (
                bytes(to_byte[character] for character in token) if is_text else token.encode()
            )
            if not is_text:
                added.add(number)
        unused = set(range(size)).difference(vocabulary.values())
        self.special_token_ids = sorted(unused.union(n for n in added if n < size))

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids


class Grammar:
    """A batch held to one grammar; see `Constraint`.

    Raises:
        GenerationError: the grammar is not valid (from the constructor), or a token that it
            forbids was consumed (from `consume`).
    """

    def __init__(self, vocabulary: Vocabulary, grammar: str, batch: int) -> None:
        first = LLMatcher(vocabulary.tokenizer, grammar)
        self._matchers = [first, *(first.deep_copy() for _ in range(batch - 1))]
        self._check()
        self._masks = np.zeros((batch, vocabulary.words), np.int32)

    def masks(self) -> torch.Tensor:
        """See `Constraint`; an item at its end may choose anything, which is ignored."""
        self._masks.fill(-1)
        # In turn: a mask takes about 60 us, and to wake llguidance's threads takes longer.
        for row, matcher in enumerate(self._matchers):
            if not matcher.is_stopped():
                fill_next_token_bitmask(matcher, self._masks, row)
        self._check()
        return torch.from_numpy(self._masks)

    def consume(self, tokens: Sequence[int]) -> None:
        """See `Constraint`."""
        for matcher, token in zip(self._matchers, tokens, strict=True):
            if not matcher.is_stopped():
                matcher.consume_token(token)
        self._check()

    def forced(self, most: int) -> list[list[int]]:
        """See `Constraint`. The tokens are those that the tokenizer makes of forced text."""
        going = [matcher for matcher in self._matchers if not matcher.is_stopped()]
        rows = {id(matcher): matcher.compute_ff_tokens()[:most] for matcher in going}
        self._check()
        count = min(map(len, rows.values()), default=0)
        return [rows.get(id(m), [0] * count)[:count] for m in self._matchers]

    @property
    def finished(self) -> bool:
        """See `Constraint`."""
        return all(matcher.is_stopped() for matcher in self._matchers)

    def _check(self) -> None:
        for matcher in self._matchers:
            if message := matcher.get_error():
                raise GenerationError(f"the grammar failed: {message.splitlines()[0]}")


class FreeText:
    """A batch that may write anything but some tokens, until one of its ends."""

    def __init__(
        self, vocabulary: Vocabulary, forbidden: Sequence[int], ends: Sequence[int], batch: int
    ) -> None:
        allowed = np.zeros(vocabulary.words * _WORD_BITS, np.uint8)
        allowed[: vocabulary.size] = 1
        allowed[[token for token in forbidden if token < vocabulary.size]] = 0
        row = np.packbits(allowed, bitorder="little").view("<i4").astype(np.int32)
        self._masks = torch.from_numpy(np.tile(row, (batch, 1)))
        self._ends = frozenset(ends)
        self._open = [True] * batch

    def masks(self) -> torch.Tensor:
        """See `Constraint`."""
        return self._masks

    def consume(self, tokens: Sequence[int]) -> None:
        """See `Constraint`."""
        for row, token in enumerate(tokens):
            self._open[row] &= token not in self._ends

    def forced(self, most: int) -> list[list[int]]:
        """See `Constraint`: nothing."""
        return [[] for _ in self._open]

    @property
    def finished(self) -> bool:
        """See `Constraint`."""
        return not any(self._open)


def _one_of(values: Sequence[Any] | range) -> str:
    return " | ".join(json.dumps(str(value), ensure_ascii=False) for value in values)


def _piece(length: int) -> str:
    """Up to so many characters; `#` only as a sharp and `:` only before a digit."""
    return rf"(?:{_TEXT}|[A-G]#|:[0-9]){{0,{length}}}"
