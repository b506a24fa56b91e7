"""Language models on disk: found, and measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from acestep.bench import lm_benchmark as benchmark
from acestep.gpu_config import get_gpu_config
from acestep.lm import models


@pytest.fixture(scope="module")
def demo() -> Path:
    return models.find("demo")


def test_the_largest_that_the_tier_allows(demo: Path, tmp_path: Path) -> None:
    for name in ("acestep-5Hz-lm-0.6B", "acestep-5Hz-lm-1.7B", "acestep-5Hz-lm-4B"):
        (tmp_path / name).mkdir()
        shutil.copy(demo / "config.json", tmp_path / name)
    for gigabytes, name in ((80, "acestep-5Hz-lm-4B"), (16, "acestep-5Hz-lm-1.7B")):
        assert models.find("auto", tmp_path, get_gpu_config(gigabytes)).name == name
    assert models.find(None, tmp_path, get_gpu_config(4)) == demo
    assert models.find("acestep-5Hz-lm-0.6B", tmp_path).resolve().parent == tmp_path
    assert models.available(tmp_path)[:1] == ["acestep-5Hz-lm-0.6B"]
    assert models.available(tmp_path)[-1] == "demo"


def test_the_benchmark_prints_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from acestep.lm.demo import LmShape

    monkeypatch.setitem(benchmark.SHAPES, "small", (LmShape(tied=True), 65000))
    monkeypatch.setattr(benchmark, "_MASK_STEPS", 3)
    options = ["--device", "cpu", "--codes", "3", "--repeats", "1", "--bandwidth", "0.05"]
    assert benchmark.main(options) == 0
    printed = capsys.readouterr().out
    for name in ("transformers generate()", "pt", "limit at 0.05 TB/s", "mask of a text token"):
        assert name in printed
