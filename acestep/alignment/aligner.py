"""Says when each token and each line of the lyrics is sung, from cross-attention.

Attention may be numpy arrays or tensors of any float dtype on any device, with the same result:
the matrices are condensed where they lie, one of `[tokens, frames]` is brought to the host, and
what follows is done there in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acestep.alignment.attention import Array, Heads, contrast_map, energy_map, to_host
from acestep.alignment.decoding import (
    TokenDecoder,
    TokenIds,
    decode_tokens,
    id_list,
)
from acestep.alignment.dtw import warp_path
from acestep.alignment.lyric_files import clock
from acestep.alignment.types import SentenceTimestamp, TokenTimestamp
from acestep.errors import RequestError


class MusicStampsAligner:
    """Says when each token and each line of the lyrics is sung."""

    def __init__(self, tokenizer: TokenDecoder) -> None:
        """Args: tokenizer: anything with `decode(ids)`, the text encoder's for ACE-Step."""
        self.tokenizer = tokenizer

    def stamps_align_info(
        self,
        attention_matrix: Array,
        lyrics_tokens: TokenIds,
        total_duration_seconds: float,
        custom_config: Heads,
        return_matrices: bool = False,
        violence_level: float = 2.0,
        medfilt_width: int = 1,
    ) -> dict[str, Any]:
        """Condense attention into the matrix whose warping path gives the times.

        Args:
            attention_matrix: `[layers, heads, tokens, frames]`.
            lyrics_tokens: the lyric token ids, one a row.
            total_duration_seconds: length of the audio that the frames cover, seconds.
            custom_config: layer to heads; heads that do not exist are skipped.
            return_matrices: also return `energy_matrix`, `[tokens, frames]` in [0, 1],
                for pictures.
            violence_level: how many medians of rows and columns are taken away.
            medfilt_width: odd width in frames of the median filter; 1 for none.

        Returns:
            `calc_matrix` (`[tokens, frames]`, float64 on the host), `lyrics_tokens` and
            `total_duration_seconds`, ready for `get_timestamps_and_lrc`.

        Raises:
            RequestError: wrong or different shapes, no such heads, no lyrics, a length that
                is not positive, an even width, NaN or infinity.
        """
        tokens = id_list(lyrics_tokens)
        contrast = contrast_map(attention_matrix, custom_config, violence_level, medfilt_width)
        _check_rows(contrast, tokens)
        info: dict[str, Any] = {
            "calc_matrix": contrast,
            "lyrics_tokens": tokens,
            "total_duration_seconds": _checked_duration(total_duration_seconds),
        }
        if return_matrices:
            info["energy_matrix"] = energy_map(attention_matrix, custom_config, medfilt_width)
        return info

    def token_timestamps(
        self, calc_matrix: Array, lyrics_tokens: TokenIds, total_duration_seconds: float
    ) -> list[TokenTimestamp]:
        """When each token is sung: from the first to the last frame of its path cells.

        Args:
            calc_matrix: `[tokens, frames]`, as `stamps_align_info` returns it.
            lyrics_tokens: the lyric token ids, one a row.
            total_duration_seconds: length of the audio that the frames cover, seconds.

        Raises:
            RequestError: different shapes, no tokens, a length that is not positive, NaN.
        """
        tokens = id_list(lyrics_tokens)
        matrix = to_host(calc_matrix).astype(np.float64)
        _check_rows(matrix, tokens)
        frame = _checked_duration(total_duration_seconds) / matrix.shape[1]
        rows, columns = warp_path(-matrix).T
        each = np.arange(len(tokens))  # a path skips no row, so every token has cells
        first = columns[np.searchsorted(rows, each, side="left")] * frame
        last = columns[np.searchsorted(rows, each, side="right") - 1] * frame
        return [
            TokenTimestamp(*stamp)
            for stamp in zip(
                tokens,
                decode_tokens(self.tokenizer, tokens),
                first.tolist(),
                last.tolist(),
                strict=True,
            )
        ]

    def sentence_timestamps(
        self, token_timestamps: Sequence[TokenTimestamp]
    ) -> list[SentenceTimestamp]:
        """Join tokens into lines; a line ends at a token whose text holds a newline.

        Lines of nothing but space are left out. Text after the newline in the same token
        opens the next line, which starts where that token ends.

        Args:
            token_timestamps: in order, as `token_timestamps` returns them.
        """
        sentences: list[SentenceTimestamp] = []
        line: list[TokenTimestamp] = []
        text, row = "", 0
        for index, token in enumerate(token_timestamps):
            line.append(token)
            ended, newline, rest = token.text.rpartition("\n")
            text += ended if newline else rest
            if newline:
                sentences += _sentence(text, line, row)
                text, row = rest, index if rest else index + 1
                line = [TokenTimestamp(token.token_id, rest, token.end, token.end)] if rest else []
        return sentences + _sentence(text, line, row)

    def format_lrc(
        self, sentence_timestamps: Sequence[SentenceTimestamp], include_end_time: bool = False
    ) -> str:
        """Lines of `[mm:ss.xx]text`, one a sentence.

        Args:
            sentence_timestamps: in order.
            include_end_time: add an empty line at the end of each sentence, by which
                players clear the display, unless the next begins there.
        """
        lines = []
        for index, sentence in enumerate(sentence_timestamps):
            lines.append(f"[{clock(sentence.start)}]{sentence.text}")
            following = sentence_timestamps[index + 1 : index + 2]
            if include_end_time and not (following and following[0].start <= sentence.end):
                lines.append(f"[{clock(sentence.end)}]")
        return "\n".join(lines)

    def get_timestamps_and_lrc(
        self,
        calc_matrix: Array,
        lyrics_tokens: TokenIds,
        total_duration_seconds: float,
        heard_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Everything at once: `token_timestamps`, `sentence_timestamps` and `lrc_text`.

        Arguments and errors are those of `token_timestamps`; no time lies beyond
        `heard_seconds`, where the song ends before the frames do.
        """
        tokens = self.token_timestamps(calc_matrix, lyrics_tokens, total_duration_seconds)
        if heard_seconds is not None:
            tokens = [
                replace(
                    token, start=min(token.start, heard_seconds), end=min(token.end, heard_seconds)
                )
                for token in tokens
            ]
        sentences = self.sentence_timestamps(tokens)
        return {
            "token_timestamps": tokens,
            "sentence_timestamps": sentences,
            "lrc_text": self.format_lrc(sentences),
        }


def _sentence(text: str, tokens: list[TokenTimestamp], row: int) -> list[SentenceTimestamp]:
    text = " ".join(text.split("\n")).strip()
    if not text:
        return []
    start, end = round(tokens[0].start, 3), round(tokens[-1].end, 3)
    return [SentenceTimestamp(text, start, end, tuple(tokens), row=row)]


def _check_rows(matrix: NDArray[Any], tokens: list[int]) -> None:
    if matrix.ndim != 2 or len(matrix) != len(tokens):
        raise RequestError(
            f"the attention has shape {list(matrix.shape)}, [tokens, frames], but the lyric "
            f"tokens have shape [{len(tokens)}]; there must be one row a token"
        )


def _checked_duration(seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds > 0):
        raise RequestError(f"total_duration_seconds must be positive and finite, got {seconds}")
    return float(seconds)
