"""Token ids to text, token by token, and what that text says about the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from acestep.errors import RequestError

TokenIds = Sequence[int] | torch.Tensor | NDArray[Any]

REPLACEMENT = "\ufffd"
END_OF_TEXT = "<|endoftext|>"
LYRIC_HEADING = "# Lyric\n"

# A character of UTF-8 is at most four tokens long; twice that also bridges a stray byte
# before it, and keeps the text decoded at a time short however damaged the input is.
LONGEST_WAIT = 8


class TokenDecoder(Protocol):
    """The one method that alignment needs of a tokenizer."""

    def decode(self, token_ids: list[int], /) -> str:
        """The text of a run of tokens; unfinished characters read as U+FFFD or nothing."""
        ...


def id_list(token_ids: TokenIds) -> list[int]:
    """Token ids as plain integers, from a sequence or a one-dimensional tensor or array.

    Raises:
        RequestError: there are none, or they are not one-dimensional.
    """
    if isinstance(token_ids, torch.Tensor | np.ndarray):
        if token_ids.ndim != 1:
            raise RequestError(
                f"lyric tokens must have shape [tokens], got {list(token_ids.shape)}"
            )
        token_ids = token_ids.tolist()
    if not token_ids:
        raise RequestError("there are no lyrics to align: the list of tokens is empty")
    return [int(token) for token in token_ids]


def decode_tokens(tokenizer: TokenDecoder, token_ids: TokenIds) -> list[str]:
    """What each token adds to the text, in time linear in the number of tokens.

    A character that spans several tokens belongs to the one that completes it; the tokens
    before get an empty text. A token is decoded together with its predecessor, because
    some tokenizers write a space only between tokens. Bytes that never become a character
    are given out as the tokenizer shows them, with the next complete text.

    Args:
        tokenizer: anything with `decode(ids)`.
        token_ids: the tokens in order.

    Returns:
        One text a token; joined they are the text of the whole.

    Raises:
        RequestError: there are no tokens, or they are not one-dimensional.
    """
    ids = id_list(token_ids)
    texts: list[str] = []
    context = settled = 0  # [context, settled) was given out last, [settled, end) waits
    known = 0  # length of the text of [context, settled)
    for end in range(1, len(ids) + 1):
        window = tokenizer.decode(ids[context:end])
        fresh = window[known:]
        incomplete = not fresh or fresh.endswith(REPLACEMENT)
        if incomplete and end < len(ids) and end - settled < LONGEST_WAIT:
            texts.append("")
            continue
        texts.append(fresh)
        context, settled = settled, end
        known = len(tokenizer.decode(ids[context:settled]))
    return texts


def lyric_mask(texts: Sequence[str]) -> NDArray[np.int64]:
    """1 for tokens of the lyrics, 0 for tokens of a tag such as `[verse]`.

    A tag reaches from a token that holds `[` to the next that holds `]`, both included. A
    token with both keeps the tag open only if its last bracket opens one, as in `][`.

    Args:
        texts: the text of each token.

    Returns:
        `[tokens]`, 0 or 1.
    """
    mask = np.ones(len(texts), dtype=np.int64)
    in_tag = False
    for index, text in enumerate(texts):
        if in_tag or "[" in text:
            mask[index] = 0
            in_tag = in_tag or "[" in text
            if "]" in text:
                in_tag = text.rfind("[") > text.rfind("]")
    return mask


def lyric_span(tokenizer: TokenDecoder, token_ids: TokenIds) -> tuple[int, int]:
    """Where the lyrics stand in the text encoder's lyric input.

    That input reads `# Languages\\n{language}\\n\\n# Lyric\\n{lyrics}<|endoftext|>`; it may be
    padded, or cut before its end. A token on the border with the heading counts as heading.

    Args:
        tokenizer: anything with `decode(ids)`.
        token_ids: the whole input, without left padding.

    Returns:
        (start, stop) of the lyric tokens.

    Raises:
        RequestError: there is no heading, or nothing but space follows it.
    """
    texts = decode_tokens(tokenizer, token_ids)
    start, seen = 0, ""
    while LYRIC_HEADING not in seen:
        if start == len(texts):
            raise RequestError(
                "the lyric tokens hold no '# Lyric' heading; pass the ids that the text "
                "encoder was given, heading and all"
            )
        seen += texts[start]
        start += 1
    stop = start
    while stop < len(texts) and END_OF_TEXT not in texts[stop]:
        stop += 1
    if not "".join(texts[start:stop]).strip():
        raise RequestError("there are no lyrics to align: the lyric text is empty")
    return start, stop
