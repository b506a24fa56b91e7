"""Lyric timestamps and the alignment score, from numpy and from tensors of every device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conformance.entrypoints import covers
from conformance.suite.support import Api, Bytes, generate
from conformance.targets import Target

GOLDEN = sorted((Path(__file__).parent / "data").glob("case_*.json"))
METRICS = ("coverage", "monotonicity", "confidence", "lyrics_score")
TOLERANCE = 1e-4
KINDS = ("numpy", "float16", "float32")
ONE_HEAD = {0: [0]}


def golden(path: Path) -> tuple[dict[str, Any], Any]:
    """A reference result and its attention, `[layers, heads, tokens, frames]` float16.

    JSON has layers as texts; numbers are what every tree takes.
    """
    reference = json.loads(path.read_text(encoding="utf-8"))
    heads = reference["layers_heads"].items()
    reference["layers_heads"] = {int(layer): listed for layer, listed in heads}
    with np.load(path.with_suffix(".npz")) as arrays:
        return reference, arrays["attention"]


def as_kind(values: Any, kind: str, target: Target) -> Any:
    """Numpy values as they are, or as a tensor of a dtype on the target."""
    if kind == "numpy":
        return values
    return torch.from_numpy(np.asarray(values)).to(getattr(torch, kind)).to(target.device)


def scorer(api: Api) -> Any:
    return api.get("dit_alignment_score:MusicLyricScorer")(Bytes())


def values_of(found: Any) -> Any:
    return found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)


def score(api: Api, attention: Any, tokens: Any, heads: Any, width: int = 1) -> Any:
    made = scorer(api)
    info = made.lyrics_alignment_info(attention, tokens, heads, medfilt_width=width)
    return made.calculate_score(info["energy_matrix"], info["type_mask"], info["path_coords"])


@covers(
    "S1",
    "dit_alignment_score:MusicLyricScorer",
    "dit_alignment_score:MusicLyricScorer.lyrics_alignment_info",
    "dit_alignment_score:MusicLyricScorer.calculate_score",
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_reference_score(api: Api, target: Target, path: Path, kind: str) -> None:
    reference, attention = golden(path)
    expected, made = reference["expected"], scorer(api)
    info = made.lyrics_alignment_info(
        as_kind(attention, kind, target),
        reference["token_ids"],
        reference["layers_heads"],
        medfilt_width=reference["medfilt_width"],
    )
    assert values_of(info["type_mask"]).tolist() == expected["type_mask"]
    assert values_of(info["path_coords"]).tolist() == expected["path_coords"]
    found = made.calculate_score(info["energy_matrix"], info["type_mask"], info["path_coords"])
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], abs=TOLERANCE), name


@covers("S1", "dit_alignment_score:MusicLyricScorer.calculate_score")
@pytest.mark.parametrize("kind", ["numpy", "float32"])
def test_score_of_a_diagonal(api: Api, target: Target, kind: str) -> None:
    """The score alone: energy, mask and path wherever they lie, and nothing moved to CUDA."""
    tokens = 7
    energy = as_kind(np.eye(tokens, dtype=np.float32), kind, target)
    counted = "numpy" if kind == "numpy" else "int64"
    mask = as_kind(np.ones(tokens, np.int64), counted, target)
    path = as_kind(np.repeat(np.arange(tokens)[:, None], 2, axis=1), counted, target)
    found = scorer(api).calculate_score(energy, mask, path)
    assert found["lyrics_score"] == pytest.approx(1.0, abs=TOLERANCE)


@covers("dit_alignment_score:MusicStampsAligner*", "alignment.dtw:*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_reference_timestamps(api: Api, target: Target, path: Path, kind: str) -> None:
    reference, attention = golden(path)
    aligner = api.get("dit_alignment_score:MusicStampsAligner")(Bytes())
    info = aligner.stamps_align_info(
        as_kind(attention, kind, target),
        reference["token_ids"],
        reference["duration_s"],
        reference["layers_heads"],
        medfilt_width=reference["medfilt_width"],
    )
    found = aligner.get_timestamps_and_lrc(
        info["calc_matrix"], reference["token_ids"], reference["duration_s"]
    )
    expected = reference["expected"]
    assert found["lrc_text"] == expected["lrc"]
    stamps = found["token_timestamps"]
    assert "".join(stamp.text for stamp in stamps) == reference["lyrics"]
    for stamp, (text, start, end) in zip(stamps, expected["tokens"], strict=True):
        # The reference shows the first byte of a longer character as U+FFFD.
        assert stamp.text == text or not text.isascii() or not text
        assert (stamp.start, stamp.end) == pytest.approx((start, end), abs=1e-6)
    for sentence, (text, start, end, _) in zip(
        found["sentence_timestamps"], expected["sentences"], strict=True
    ):
        assert (sentence.text, sentence.start, sentence.end) == (text, start, end)


@covers("S1", "dit_alignment_score:MusicLyricScorer.calculate_score")
@given(data=st.data())
def test_any_attention_scores_alike(api: Api, target: Target, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 24))
    attention = data.draw(
        hnp.arrays(np.float32, (1, 1, rows, columns), elements=st.floats(0, 1, width=16))
    )
    text = data.draw(st.text(st.sampled_from("ab[]\n é"), min_size=rows, max_size=rows))
    tokens = list(text.encode("utf-8"))[:rows]
    host = score(api, attention, tokens, ONE_HEAD)
    there = score(api, as_kind(attention, "float32", target), tokens, ONE_HEAD)
    for name in METRICS:
        assert 0 <= host[name] <= 1
        assert there[name] == pytest.approx(host[name], abs=TOLERANCE), name


@covers("S1", "alignment.attention:*")
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_maps_are_the_same_from_a_tensor(api: Api, target: Target, kind: str) -> None:
    """The matrices behind score and timestamps, condensed where the attention lies."""
    reference, attention = golden(GOLDEN[0])
    heads, width = reference["layers_heads"], 3
    there = as_kind(attention, kind, target)
    for name in ("energy_map", "contrast_map"):
        condense = api.get(f"alignment.attention:{name}")
        host = condense(attention, heads, medfilt_width=width)
        assert np.abs(condense(there, heads, medfilt_width=width) - host).max() <= TOLERANCE
    filtered = api.get("alignment.attention:median_filter")(there[0, 0].float(), width)
    assert filtered.device.type == target.device
    assert api.get("alignment.attention:to_host")(filtered).shape == attention.shape[2:]


@covers(
    "alignment.aligner:*",
    "alignment.scorer:*",
    "alignment.service:LyricAlignmentMixin.*",
    "alignment.service:SongInputs.checked",
    "alignment.service:song_inputs",
    "alignment.heads:alignment_heads",
    "engines.heads:checked_table",
    "engines.torch.cross_attention:capture_cross_attention",
    "engines.torch.engine:TorchEngine.cross_attention",
    "alignment.decoding:*",
    "A1",
)
def test_lyrics_of_a_song(api: Api, target: Target, handler: Any) -> None:
    """Timestamps and score of a generated song, and of audio that was not generated here."""
    made = generate(api, handler, lyrics="[verse]\nhello world\nagain")
    assert made.success, made.error
    song_inputs = api.get("alignment.service:song_inputs")
    timed = handler.get_lyric_timestamp(**song_inputs(made.extra_outputs))
    assert timed["success"], timed["error"]
    assert timed["lrc_text"].splitlines()[-1].endswith("again")
    assert all(s.start <= s.end for s in timed["sentence_timestamps"])
    judged = handler.get_lyric_score(**song_inputs(made.extra_outputs))
    assert judged["success"], judged["error"]
    assert 0 <= judged["lyrics_score"] <= 1
    given_audio = handler.condition_on_lyrics(made.audios[0]["tensor"], "hello\nworld")
    assert handler.get_lyric_score(**song_inputs(given_audio))["success"]
