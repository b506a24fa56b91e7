"""Lyric timestamps, and a score of how well a song sings its lyrics: the names callers know."""

from __future__ import annotations

from acestep.alignment.aligner import MusicStampsAligner
from acestep.alignment.scorer import MusicLyricScorer
from acestep.alignment.types import SentenceTimestamp, TokenTimestamp

__all__ = ["MusicLyricScorer", "MusicStampsAligner", "SentenceTimestamp", "TokenTimestamp"]
