"""Says how well a song sings its lyrics, from cross-attention; see `alignment.aligner`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acestep.alignment.attention import Array, Heads, energy_map, to_host
from acestep.alignment.decoding import (
    TokenDecoder,
    TokenIds,
    decode_tokens,
    lyric_mask,
)
from acestep.alignment.dtw import Path, warp_path
from acestep.errors import RequestError

VOICED_ENERGY = 0.1
ROW_WEIGHT = 1e-9

# So few rows in float64 at a time stay in the processor's cache.
_ROWS_AT_ONCE = 16


class MusicLyricScorer:
    """Scores how well attention walks through the lyrics: coverage, order, confidence."""

    def __init__(self, tokenizer: TokenDecoder) -> None:
        """Args: tokenizer: anything with `decode(ids)`, the text encoder's for ACE-Step."""
        self.tokenizer = tokenizer

    def lyrics_alignment_info(
        self,
        attention_matrix: Array,
        token_ids: TokenIds,
        custom_config: Heads,
        return_matrices: bool = False,
        medfilt_width: int = 1,
    ) -> dict[str, Any]:
        """Condense attention into an energy map, and find the path through it.

        Args:
            attention_matrix: `[layers, heads, tokens, frames]`.
            token_ids: the lyric token ids; if there are not as many as rows, no row is
                known to be a tag and all count as lyrics.
            custom_config: layer to heads; heads that do not exist are skipped.
            return_matrices: also return `cost_matrix`, what the path was found in.
            medfilt_width: odd width in frames of the median filter; 1 for none.

        Returns:
            On the host: `energy_matrix` (`[tokens, frames]` float32 in [0, 1]), `type_mask`
            (`[tokens]`, 1 lyric, 0 tag) and `path_coords` (`[steps, 2]`, token and frame).

        Raises:
            RequestError: wrong shape, no such heads, no tokens, an even width, NaN or
                infinity.
        """
        mask = lyric_mask(decode_tokens(self.tokenizer, token_ids))
        energy = energy_map(attention_matrix, custom_config, medfilt_width)
        if len(mask) != len(energy):
            mask = np.ones(len(energy), dtype=np.int64)
        cost = -np.square(energy)
        info = {"energy_matrix": energy, "type_mask": mask, "path_coords": warp_path(cost)}
        return info | {"cost_matrix": cost} if return_matrices else info

    def calculate_score(
        self,
        energy_matrix: Array,
        type_mask: Array | Sequence[int],
        path_coords: Array | Sequence[Sequence[int]],
        time_weight: float = 0.01,
        overlap_frames: float = 9.0,
        instrumental_weight: float = 1.0,
    ) -> dict[str, float]:
        """Score a path through an energy map.

        Args:
            energy_matrix: `[tokens, frames]` in [0, 1].
            type_mask: `[tokens]`, 1 lyric, 0 tag; of another length, all rows are lyrics.
            path_coords: `[steps, 2]`, token and frame.
            time_weight: energy above which a cell counts towards a row's centre of time.
            overlap_frames: how far, in frames, a row's centre may lie before its
                predecessor's without counting as out of order.
            instrumental_weight: weight in the confidence of path steps on tags.

        Returns:
            `coverage`, `monotonicity`, `confidence` and `lyrics_score`, each in [0, 1];
            the last is coverage² · monotonicity² · confidence, rounded to 4 decimals.

        Raises:
            RequestError: shapes that do not fit, a path outside the map, NaN or infinity.
        """
        energy = to_host(energy_matrix)
        mask = to_host(np.asarray(type_mask) if isinstance(type_mask, Sequence) else type_mask)
        path = _checked_path(path_coords, energy)
        if mask.shape != energy.shape[:1]:
            mask = np.ones(len(energy), dtype=np.int64)
        lyric = mask == 1
        rows = energy if lyric.all() else energy[lyric]
        coverage = _coverage(rows)
        monotonicity = _monotonicity(rows, time_weight, overlap_frames)
        along = energy[path[:, 0], path[:, 1]].astype(np.float64)
        weights = np.where(lyric[path[:, 0]], 1.0, instrumental_weight)
        total = float(weights.sum())
        confidence = float(along @ weights) / total if total > ROW_WEIGHT else 0.0
        score = min(max(coverage**2 * monotonicity**2 * confidence, 0.0), 1.0)
        return {
            "coverage": coverage,
            "monotonicity": monotonicity,
            "confidence": confidence,
            "lyrics_score": round(score, 4),
        }


def _coverage(lyric_rows: NDArray[Any]) -> float:
    """Share of lyric rows that are heard at all; 1 if there are none."""
    if not len(lyric_rows):
        return 1.0
    return float((lyric_rows.max(axis=1) > VOICED_ENERGY).mean())


def _monotonicity(lyric_rows: NDArray[Any], time_weight: float, overlap_frames: float) -> float:
    """Share of neighbouring rows whose centres of time are in order; 1 if fewer than two."""
    columns = np.stack([np.ones(lyric_rows.shape[1]), np.arange(lyric_rows.shape[1])], axis=1)
    moments = np.empty((len(lyric_rows), 2))
    for start in range(0, len(lyric_rows), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        weights = lyric_rows[some].astype(np.float64)
        weights *= lyric_rows[some] > time_weight
        moments[some] = weights @ columns
    heard = moments[:, 0] > ROW_WEIGHT
    centres = moments[heard, 1] / moments[heard, 0]
    if len(centres) < 2:
        return 1.0
    return float((centres[1:] >= centres[:-1] - overlap_frames).mean())


def _checked_path(path_coords: Array | Sequence[Sequence[int]], energy: NDArray[Any]) -> Path:
    """The path as integers on the host, known to lie within the energy map."""
    given = np.asarray(path_coords) if isinstance(path_coords, Sequence) else path_coords
    path: Path = to_host(given).astype(np.int64)
    if energy.ndim != 2 or path.ndim != 2 or path.shape[1] != 2 or not path.size:
        raise RequestError(
            f"the score needs energy of shape [tokens, frames] and a path of shape [steps, 2], "
            f"got {list(energy.shape)} and {list(path.shape)}"
        )
    if (path < 0).any() or (path >= np.array(energy.shape)).any():
        raise RequestError(
            f"the path of shape {list(path.shape)} leaves the energy of shape "
            f"{list(energy.shape)}: it reaches {path.max(axis=0).tolist()}"
        )
    if not np.isfinite(energy).all():
        raise RequestError("the energy holds NaN or infinity")
    return path
