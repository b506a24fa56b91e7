"""The benchmark's own parts: its straightforward way is right, and it runs to the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from acestep.alignment.dtw import warp_path
from acestep.bench import alignment_benchmark as benchmark

SMALL = ["--device", "cpu", "--tokens", "12", "--frames", "40", "--heads", "2", "--repeat", "1"]


def test_what_is_compared_does_the_same_work() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        cost = generator.integers(-2, 2, generator.integers(1, 9, 2)).astype(np.float32)
        assert np.array_equal(benchmark.plain_warp(cost), warp_path(cost))
    attention = generator.random((1, 2, 9, 30)).astype(np.float32) ** 4
    ids = list(b"ab\ncd\n[x]")
    table = {0: [0, 1]}
    info = benchmark.SCORER.lyrics_alignment_info(attention, ids, table)
    score = benchmark.SCORER.calculate_score(**info)
    assert benchmark.plain_score(attention[0], ids, warp_path) == pytest.approx(score, abs=1e-6)
    stamps = benchmark.ALIGNER.stamps_align_info(attention, ids, 2.4, table)
    lrc = benchmark.ALIGNER.get_timestamps_and_lrc(**stamps)["lrc_text"]
    assert benchmark.plain_lrc(attention[0], ids, 2.4, warp_path) == lrc


def test_it_runs_and_says_what_it_saw(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*SMALL, "--capture", "none", "--no-comparison"]) == 0
    out = capsys.readouterr().out
    assert "float32: 10 of 10 have equal masks, paths, sentences and LRC" in out
    assert "whole score: first call" in out
    assert "whole LRC: first call" in out
    assert "time warping alone, float64" in out


def test_capture_of_a_small_model(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = benchmark._parser().parse_args([*SMALL, "--seconds", "2"])
    from acestep.device import resolve

    benchmark.benchmark_capture(
        resolve("cpu"), benchmark.SMALL_SHAPE | {"intermediate_size": 64}, arguments
    )
    out = capsys.readouterr().out
    assert "forward of the 7 layers it needs" in out
    assert "not compared" in out


@pytest.mark.parametrize("key", ["lrc", "path_coords", "confidence", "tokens"])
def test_a_missed_reference_result_fails(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = benchmark.GOLDEN / "case_03.json"
    case = json.loads(source.read_text(encoding="utf-8"))
    broken = {"lrc": "x", "path_coords": [[0, 0]], "confidence": 0.1, "tokens": [["a", 1, 2]] * 15}
    case["expected"][key] = broken[key]
    (tmp_path / source.name).write_text(json.dumps(case), encoding="utf-8")
    (tmp_path / "case_03.npz").write_bytes(source.with_suffix(".npz").read_bytes())
    arguments = [*SMALL, "--capture", "none", "--no-comparison", "--golden", str(tmp_path)]
    assert benchmark.main(arguments) == 1


def test_no_reference_results_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--capture", "none", "--no-comparison", "--golden", str(tmp_path)]
    assert benchmark.main(arguments) == 1
    assert "0 of 0" in capsys.readouterr().out
