"""Tests of the benchmark: it runs, its rows hold what they say, and its files are written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from acestep.acestep_v15_pipeline import main
from acestep.bench import measure, shapes
from acestep.bench.measure import STAGES, Row
from acestep.bench.picture import draw
from acestep.demo.recipe import BUILTIN
from acestep.device import resolve
from acestep.errors import GenerationError


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command lifts the memory tiers for its process; here that ends with the test."""
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "80")


def test_table_json_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, picture = tmp_path / "b.json", tmp_path / "b.png"
    options = "bench --device cpu --seconds 0.6 --repeats 1 --growth --growth-seconds 0.6"
    files = ["--think", "--growth-batches", "1", "2", "--json", str(table), "--png", str(picture)]
    assert main([*options.split(), *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["side", "song", "s"]
    assert [line.split()[0] for line in lines[1:5]] == ["acestep", "diffusers"] + ["acestep"] * 2
    assert lines[5].startswith("most music: ")
    assert lines[6].startswith("planned, 1 of 0.6 s, words to file: first ")
    report = json.loads(table.read_text(encoding="utf-8"))
    assert report["what"].startswith("demo on cpu")
    ours, theirs, *grown = report["rows"]
    assert (ours["side"], theirs["side"]) == ("acestep", "diffusers")
    assert list(ours["stages"]) == list(STAGES)
    assert ours["stages"]["lm"] > 0
    assert ours["total"] == pytest.approx(sum(ours["stages"].values()), abs=1e-3)
    assert " total " in lines[1]
    assert len(ours["each_step"]) == measure.STEPS
    assert sum(ours["each_step"]) == pytest.approx(ours["stages"]["steps"], rel=0.2, abs=0.02)
    assert ours["spread"][0] <= ours["warm"] <= ours["spread"][1]
    assert ours["peak"] > 0.1
    assert ours["songs_per_hour"] == pytest.approx(3600 / ours["warm"], rel=0.01)
    assert [(row["seconds"], row["batch"]) for row in grown] == [(0.6, 1), (0.6, 2)]
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_run_much_slower_than_its_stages_is_drawn(tmp_path: Path) -> None:
    """As when something else took the machine while the runs took turns."""
    stages = dict.fromkeys(STAGES, 0.03)
    row = Row("acestep", 10.0, 1, 9.0, 5.9, (5.0, 9.0), 1.0, stages, [0.004] * 8)
    other = Row("diffusers", 10.0, 1, 1.1, 1.1, (1.1, 1.1), 1.0)
    draw(tmp_path / "b.png", "two", [row, other], [row])
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_the_first_of_several_processes_only_warms(tmp_path: Path) -> None:
    said = 'import json; print(json.dumps([{"seconds_taken": 0.001}]))'
    runs = measure._started([sys.executable, "-I", "-S", "-c", said], 2)
    assert [run.from_disk for run in runs] == [0.001, 0.001]
    assert all(0.001 < run.command < 30 for run in runs)


@pytest.mark.soak
def test_fresh_processes_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "b.json"
    options = "bench --device cpu --seconds 0.6 --repeats 1 --against nothing --start-up 1"
    assert main([*options.split(), "--json", str(table)]) == 0
    assert "start-up: from disk to a song's file " in capsys.readouterr().out
    (run,) = json.loads(table.read_text(encoding="utf-8"))["start_up"]
    assert 0 < run["from_disk"] < run["command"]


def test_a_fresh_process_that_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match=r"a fresh process failed: .*no checkpoint folder"):
        measure.start_up(tmp_path / "none", "cpu", 0.6, 1)


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--repeats", "0"]) == 2
    assert "at least 1 repeat" in capsys.readouterr().err
    assert main(["bench", "--start-up", "-1"]) == 2
    assert "--start-up -1 is out of range" in capsys.readouterr().err


def test_compiled_blocks_of_diffusers_leave_the_modules_eager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other sides call the blocks; ours must neither see nor keep their compiled form."""
    handler = shapes.make_handler("demo", resolve("cpu"))
    assert handler.pipeline is not None
    called: list[str] = []

    def compiled(self: object, *, dynamic: bool) -> None:
        def call(*inputs: object, **named: object) -> object:
            called.append(type(self).__name__)
            return self.forward(*inputs, **named)  # type: ignore[attr-defined]

        self._compiled_call_impl = call  # type: ignore[attr-defined]

    monkeypatch.setattr("torch.nn.Module.compile", compiled)
    sides = ("acestep", "diffusers", "diffusers compiled")
    rows = measure.compare(handler, 0.6, 1, sides=sides)
    assert [row.side for row in rows] == list(sides)
    assert set(called) == {"AceStepTransformerBlock", "OobleckDecoder"}
    layers = len(handler.pipeline.transformer.layers)
    assert len(called) == 2 * (measure.STEPS * layers + 1), "two runs of one side"
    modules = handler.pipeline.transformer.modules()
    assert all(module._compiled_call_impl is None for module in modules)


def test_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = shapes.wide_shape()
    assert (wide.hidden, wide.decoder_channels) == (
        4 * BUILTIN.hidden,
        4 * BUILTIN.decoder_channels,
    )
    monkeypatch.setattr(
        shapes, "_TURBO", shapes._TURBO | {"hidden_size": 64, "intermediate_size": 64}
    )
    monkeypatch.setattr(
        shapes, "_TEXT", shapes._TEXT | {"num_hidden_layers": 1, "vocab_size": 1600}
    )
    handler = shapes.make_handler("turbo", resolve("cpu"), compiled=True)
    assert handler.pipeline is not None
    assert handler.pipeline.compiles
    assert "turbo, random weights" in handler.status()
    assert handler.pipeline.transformer.config.num_hidden_layers == 24


def test_rows_are_rounded_plain_data() -> None:
    row = Row("acestep", 30.0, 4, 1.0, 0.123456, (0.1, 0.2), 7.7, {"text": 0.01234567}, [0.1])
    record = json.loads(json.dumps(row.record()))
    assert record["warm"] == 0.1235
    assert record["stages"] == {"text": 0.0123}
    assert record["songs_per_hour"] == pytest.approx(3600 * 4 / 0.123456, abs=0.1)


def test_codes_a_second_of_a_language_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from acestep.bench import lm_benchmark
    from acestep.lm.demo import LmShape

    monkeypatch.setitem(lm_benchmark.SHAPES, "small", (LmShape(), 66_000))
    monkeypatch.setattr(lm_benchmark, "_COPIED", 1 << 20)
    options = "bench --device cpu --lm small --codes 2 --repeats 1 --against nothing"
    assert main(options.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small on cpu")
    ours = next(line for line in lines if line.startswith("transformers' modules"))
    assert " codes/s" in ours
    assert " after the prompt, " in ours
    assert " % of the limit; first " in ours
    assert any(line.startswith("limit at ") for line in lines)
    assert main([*options.split(), "--codes", "0"]) == 2
