"""Lyric timestamps and score: reference results, properties, known times, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from acestep.dit_alignment_score import (
    MusicLyricScorer,
    MusicStampsAligner,
    SentenceTimestamp,
    TokenTimestamp,
)
from acestep.errors import RequestError

GOLDEN = sorted((Path(__file__).parent / "golden" / "alignment").glob("*.json"))

# bfloat16 keeps 8 bits of a weight; the reference attention is exact in float16 only.
BFLOAT16_SCORE_TOLERANCE = 5e-3


class Bytes:
    """One token a byte of UTF-8, as in the reference results."""

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


SCORER = MusicLyricScorer(Bytes())
ALIGNER = MusicStampsAligner(Bytes())
ONE = {0: [0]}


def case(path: Path) -> tuple[dict[str, Any], NDArray[np.float16]]:
    with np.load(path.with_suffix(".npz")) as arrays:
        return json.loads(path.read_text(encoding="utf-8")), arrays["attention"]


def score_of(attention: Any, tokens: Any, heads: Any = ONE, width: int = 1) -> dict[str, float]:
    info = SCORER.lyrics_alignment_info(attention, tokens, heads, medfilt_width=width)
    return SCORER.calculate_score(info["energy_matrix"], info["type_mask"], info["path_coords"])


def blocks(frames_of: list[int]) -> NDArray[np.float32]:
    """Attention `[1, 1, tokens, frames]` of tokens that follow one another, each heard in
    its own run of frames."""
    rows = np.repeat(np.arange(len(frames_of)), frames_of)
    return (np.arange(len(frames_of))[:, None] == rows).astype(np.float32)[None, None]


def test_reference_results_are_here() -> None:
    assert len(GOLDEN) == 10


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["numpy", torch.float16, torch.float32, torch.float64])
def test_reference_score(path: Path, kind: Any) -> None:
    given_, attention = case(path)
    expected = given_["expected"]
    values = attention if kind == "numpy" else torch.from_numpy(attention).to(kind)
    info = SCORER.lyrics_alignment_info(
        values, given_["token_ids"], given_["layers_heads"], medfilt_width=given_["medfilt_width"]
    )
    assert info["type_mask"].tolist() == expected["type_mask"]
    assert info["path_coords"].tolist() == expected["path_coords"]
    score = SCORER.calculate_score(info["energy_matrix"], info["type_mask"], info["path_coords"])
    for name in ("coverage", "monotonicity", "confidence", "lyrics_score"):
        assert score[name] == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["numpy", torch.float32, torch.bfloat16])
def test_reference_timestamps(path: Path, kind: Any) -> None:
    """Texts of tokens are compared where the reference has whole characters: it shows the
    first byte of a longer one as U+FFFD, here the last one has it."""
    given_, attention = case(path)
    expected = given_["expected"]
    values = attention if kind == "numpy" else torch.from_numpy(attention).to(kind)
    info = ALIGNER.stamps_align_info(
        values,
        given_["token_ids"],
        given_["duration_s"],
        given_["layers_heads"],
        medfilt_width=given_["medfilt_width"],
    )
    found = ALIGNER.get_timestamps_and_lrc(**info)
    stamps = found["token_timestamps"]
    assert [stamp.token_id for stamp in stamps] == given_["token_ids"]
    assert "".join(stamp.text for stamp in stamps) == given_["lyrics"]
    for stamp, (text, start, end) in zip(stamps, expected["tokens"], strict=True):
        assert (stamp.start, stamp.end) == pytest.approx((start, end), abs=1e-6)
        assert stamp.text == text or not text.isascii() or text == ""
    sentences = found["sentence_timestamps"]
    assert [[s.text, s.start, s.end, s.confidence] for s in sentences] == expected["sentences"]
    assert found["lrc_text"] == expected["lrc"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_reference_score_from_bfloat16(path: Path) -> None:
    given_, attention = case(path)
    score = score_of(
        torch.from_numpy(attention).bfloat16(),
        given_["token_ids"],
        given_["layers_heads"],
        given_["medfilt_width"],
    )
    expected = given_["expected"]["lyrics_score"]
    assert score["lyrics_score"] == pytest.approx(expected, abs=BFLOAT16_SCORE_TOLERANCE)


ATTENTION = hnp.arrays(
    np.float32,
    st.tuples(st.just(1), st.just(1), st.integers(1, 7), st.integers(1, 14)),
    elements=st.floats(0, 1, width=16),
)


@settings(max_examples=60)
@given(ATTENTION, st.binary(min_size=7, max_size=7), st.sampled_from([1, 3]))
def test_any_attention_scores_within_bounds(
    attention: NDArray[np.float32], text: bytes, width: int
) -> None:
    score = score_of(attention, list(text[: attention.shape[2]]), width=width)
    assert all(0 <= value <= 1 for value in score.values())


@settings(max_examples=60)
@given(ATTENTION, st.floats(0.1, 600))
def test_any_attention_gives_rising_times_within_the_song(
    attention: NDArray[np.float32], seconds: float
) -> None:
    tokens = [ord("a")] * attention.shape[2]
    info = ALIGNER.stamps_align_info(attention, tokens, seconds, ONE)
    stamps = ALIGNER.token_timestamps(**info)
    times = [time for stamp in stamps for time in (stamp.start, stamp.end)]
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] == pytest.approx(seconds * (1 - 1 / attention.shape[3]))


@pytest.mark.parametrize(("tokens", "frames"), [(2, 4), (12, 30), (40, 400), (5, 500)])
def test_a_perfect_diagonal_scores_high(tokens: int, frames: int) -> None:
    """Neighbouring tokens share one frame, as a path's corners do."""
    attention = blocks([frames // tokens] * tokens)
    attention[..., 1:, :-1] = np.maximum(attention[..., 1:, :-1], attention[..., 1:, 1:])
    assert score_of(attention, [ord("a")] * tokens)["lyrics_score"] >= 0.99


@pytest.mark.parametrize(("tokens", "frames"), [(20, 20), (40, 400), (5, 500)])
def test_a_diagonal_without_overlap_loses_its_corners(tokens: int, frames: int) -> None:
    """Three equal predecessors at each corner: the tie rule turns into an empty cell, so
    one step a token is without energy. At 100 frames a token that is still 0.99."""
    score = score_of(blocks([frames // tokens] * tokens), [ord("a")] * tokens)["lyrics_score"]
    assert score == round(frames / (frames + tokens - 1), 4)
    assert (score >= 0.99) == (frames >= 100 * (tokens - 1))


@pytest.mark.parametrize("seed", range(8))
def test_shuffled_rows_score_lower(seed: int) -> None:
    generator = np.random.default_rng(seed)
    attention = blocks([5] * 24) + 0.2 * generator.random((1, 1, 24, 120), dtype=np.float32)
    tokens = [ord("a")] * 24
    shuffled = attention[:, :, generator.permutation(24)]
    ordered_score = score_of(attention, tokens)["lyrics_score"]
    assert score_of(shuffled, tokens)["lyrics_score"] < 0.5 * ordered_score


@settings(max_examples=30)
@given(ATTENTION, st.sampled_from([2.0**-9, 0.5, 4.0, 2.0**10]))
def test_scaling_attention_changes_nothing(attention: NDArray[np.float32], factor: float) -> None:
    """By powers of two, which rounding leaves alone; the flat range is absolute."""
    if np.ptp(attention) * min(factor, 1) <= 1e-6:
        attention = attention * 0
    tokens = [ord("a")] * attention.shape[2]
    assert score_of(attention * np.float32(factor), tokens) == score_of(attention, tokens)


@pytest.mark.parametrize("seed", range(6))
def test_known_times_are_recovered_to_one_frame(seed: int) -> None:
    """Attention built by hand from a timetable, over noise and in several heads."""
    generator = np.random.default_rng(seed)
    runs = generator.integers(2, 9, size=30)
    clean = blocks(runs.tolist())[0, 0]
    noise = generator.random((2, 3, *clean.shape), dtype=np.float32)
    attention = torch.from_numpy(np.where(clean > 0, 0.8, 0.0) + 0.1 * noise)
    frame = 0.08
    info = ALIGNER.stamps_align_info(
        attention, [ord("a")] * 30, frame * int(runs.sum()), {0: [0, 2], 1: [1]}
    )
    stamps = ALIGNER.token_timestamps(**info)
    starts = np.concatenate([[0], np.cumsum(runs)[:-1]])
    found = np.array([[stamp.start, stamp.end] for stamp in stamps]) / frame
    assert np.abs(found[:, 0] - starts).max() <= 1 + 1e-6
    assert np.abs(found[:, 1] - (starts + runs - 1)).max() <= 1 + 1e-6


def test_score_by_hand() -> None:
    """Coverage 2/3, one of two neighbours out of order, tag steps at half weight."""
    energy = np.zeros((4, 40), dtype=np.float64)
    energy[0, 0] = 1.0  # a tag
    energy[1, 30], energy[2, 5], energy[3, 38] = 0.8, 0.4, 0.05
    score = SCORER.calculate_score(
        torch.from_numpy(energy),
        [0, 1, 1, 1],
        [[0, 0], [1, 30], [2, 30], [3, 38]],
        instrumental_weight=0.5,
    )
    confidence = (0.5 * 1.0 + 0.8 + 0.0 + 0.05) / 3.5
    assert score["coverage"] == pytest.approx(2 / 3)
    assert score["monotonicity"] == pytest.approx(1 / 2)
    assert score["confidence"] == pytest.approx(confidence)
    assert score["lyrics_score"] == round((2 / 3) ** 2 * 0.25 * confidence, 4)


@pytest.mark.parametrize(("overlap", "expected"), [(24.9, 0.5), (25.0, 1.0)])
def test_rows_may_overlap_by_so_many_frames(overlap: float, expected: float) -> None:
    energy = np.zeros((3, 40))
    energy[0, 30] = energy[1, 5] = energy[2, 38] = 1.0
    score = SCORER.calculate_score(energy, np.ones(3), np.zeros((1, 2)), overlap_frames=overlap)
    assert score["monotonicity"] == expected


def test_time_weight_decides_what_counts_towards_a_centre() -> None:
    energy = np.zeros((2, 40))
    energy[0, 20], energy[1, 0], energy[1, 39] = 1.0, 1.0, 0.3
    path = np.zeros((1, 2))
    assert SCORER.calculate_score(energy, np.ones(2), path, 0.3, 12)["monotonicity"] == 0.0
    assert SCORER.calculate_score(energy, np.ones(2), path, 0.29, 12)["monotonicity"] == 1.0


def test_only_tags_have_full_coverage_and_order() -> None:
    attention = blocks([3] * 7)
    score = score_of(attention, list(b"[verse]"))
    assert (score["coverage"], score["monotonicity"]) == (1.0, 1.0)
    energy = SCORER.lyrics_alignment_info(attention, list(b"[verse]"), ONE)
    silent = SCORER.calculate_score(
        energy["energy_matrix"], energy["type_mask"], energy["path_coords"], instrumental_weight=0
    )
    assert silent["confidence"] == silent["lyrics_score"] == 0.0


@pytest.mark.parametrize("count", [5, 9])
def test_tokens_of_another_number_than_rows_are_all_lyrics(count: int) -> None:
    info = SCORER.lyrics_alignment_info(blocks([3] * 7), list(b"[verse]\n!"[:count]), ONE)
    assert info["type_mask"].tolist() == [1] * 7
    energy, path = info["energy_matrix"], info["path_coords"]
    assert SCORER.calculate_score(energy, [0] * count, path) == SCORER.calculate_score(
        energy, [1] * 7, path
    )


@pytest.mark.parametrize(("tokens", "frames"), [(1, 1), (1, 5), (5, 1)])
def test_one_token_or_one_frame(tokens: int, frames: int) -> None:
    """Flat attention: a token takes its share of the path, and the score is 0."""
    attention = np.full((1, 1, tokens, frames), 0.5, dtype=np.float32)
    ids = list(b"abcde"[:tokens])
    info = ALIGNER.stamps_align_info(attention, ids, 2.0, ONE)
    stamps = ALIGNER.token_timestamps(**info)
    assert stamps[0].start == 0
    assert stamps[-1].end == pytest.approx(2.0 * (frames - 1) / frames)
    assert score_of(attention, ids)["lyrics_score"] == 0.0


def test_matrices_for_pictures_come_only_when_asked_for() -> None:
    attention, ids = blocks([2, 2, 2]), list(b"abc")
    assert "energy_matrix" not in ALIGNER.stamps_align_info(attention, ids, 1.0, ONE)
    asked = ALIGNER.stamps_align_info(attention, ids, 1.0, ONE, return_matrices=True)
    assert np.array_equal(asked["energy_matrix"], attention[0, 0])
    scored = SCORER.lyrics_alignment_info(attention, ids, ONE, return_matrices=True)
    assert np.array_equal(scored["cost_matrix"], -attention[0, 0])


def test_ids_may_be_a_tensor() -> None:
    attention = blocks([2, 2, 2])
    info = ALIGNER.stamps_align_info(attention, torch.tensor(list(b"abc")), 1.0, ONE)
    assert info["lyrics_tokens"] == list(b"abc")


def stamps(*texts: str) -> list[TokenTimestamp]:
    return [TokenTimestamp(i, text, i, i + 1.0) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["la", " la", "\n", "oh"], [("la la", 0, 3, 0), ("oh", 3, 4, 3)]),
        (["a", ".\n\n", "\n", "b", "\n"], [("a.", 0, 2, 0), ("b", 3, 5, 3)]),
        (["a", "\n[", "b]"], [("a", 0, 2, 0), ("[b]", 2, 3, 1)]),
        (["a\nb", "c"], [("a", 0, 1, 0), ("bc", 1, 2, 0)]),
        ([" ", "\n", "\n"], []),
        ([], []),
    ],
)
def test_sentences_end_at_newlines(
    texts: list[str], expected: list[tuple[str, float, float, int]]
) -> None:
    sentences = ALIGNER.sentence_timestamps(stamps(*texts))
    assert [(s.text, s.start, s.end, s.row) for s in sentences] == expected


def test_sentence_times_are_rounded_to_milliseconds() -> None:
    (sentence,) = ALIGNER.sentence_timestamps([TokenTimestamp(1, "a", 1 / 3, 2 / 3)])
    assert (sentence.start, sentence.end) == (0.333, 0.667)


def test_lrc_lines() -> None:
    sentences = [
        SentenceTimestamp("one", 0.0, 59.999, ()),
        SentenceTimestamp("two", 59.999, 61.5, ()),
        SentenceTimestamp("three", 3601.25, 3602.0, ()),
    ]
    assert ALIGNER.format_lrc(sentences) == "[00:00.00]one\n[01:00.00]two\n[60:01.25]three"
    assert ALIGNER.format_lrc(sentences, include_end_time=True) == (
        "[00:00.00]one\n[01:00.00]two\n[01:01.50]\n[60:01.25]three\n[60:02.00]"
    )
    assert ALIGNER.format_lrc([]) == ""


def test_rows_and_tokens_that_differ_are_both_named() -> None:
    with pytest.raises(RequestError, match=r"shape \[3, 6\].*shape \[2\]"):
        ALIGNER.stamps_align_info(blocks([2, 2, 2]), [1, 2], 1.0, ONE)
    with pytest.raises(RequestError, match=r"shape \[3, 6\].*shape \[4\]"):
        ALIGNER.token_timestamps(np.zeros((3, 6)), [1, 2, 3, 4], 1.0)
    with pytest.raises(RequestError, match=r"shape \[6\].*shape \[6\]"):
        ALIGNER.token_timestamps(np.zeros(6), [1] * 6, 1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_lengths_that_are_none(seconds: float) -> None:
    with pytest.raises(RequestError, match="positive"):
        ALIGNER.stamps_align_info(blocks([2]), [1], seconds, ONE)


def test_no_lyrics() -> None:
    for call in (
        lambda: ALIGNER.stamps_align_info(blocks([2]), [], 1.0, ONE),
        lambda: ALIGNER.token_timestamps(np.zeros((1, 2)), [], 1.0),
        lambda: SCORER.lyrics_alignment_info(blocks([2]), [], ONE),
    ):
        with pytest.raises(RequestError, match="no lyrics"):
            call()


@pytest.mark.parametrize(
    ("energy", "path", "message"),
    [
        (np.zeros((3, 4, 5)), [[0, 0]], r"\[3, 4, 5\] and \[1, 2\]"),
        (np.zeros((3, 4)), [[0, 0, 0]], r"\[3, 4\] and \[1, 3\]"),
        (np.zeros((3, 4)), np.zeros((0, 2)), r"\[3, 4\] and \[0, 2\]"),
        (np.zeros((3, 4)), [[0, 0], [3, 1]], r"path of shape \[2, 2\].*shape \[3, 4\].*\[3, 1\]"),
        (np.zeros((3, 4)), [[0, -1]], "leaves the energy"),
        (np.full((3, 4), np.nan), [[0, 0]], "NaN or infinity"),
    ],
)
def test_score_of_things_that_do_not_fit(energy: Any, path: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SCORER.calculate_score(energy, [1, 1, 1], path)
