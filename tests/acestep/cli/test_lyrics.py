"""Lyric files from the command line: beside a new song, and for one that exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from acestep.acestep_v15_pipeline import main

LYRICS = "[verse]\nHello world\nla la la\n"
MAKE = ["generate", "warm piano", "--device", "cpu", "--model", "demo", "--duration", "1"]
ALIGN = ["align", "chord.wav", "--device", "cpu", "--model", "demo"]
LINE = r"\[\d\d:\d\d\.\d\d\]"


def test_generate_writes_everything_beside_the_song(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "--lyrics",
        LYRICS,
        "--lrc",
        "words",
        "--lrc-ends",
        "--srt",
        "--vtt",
        "--plot",
        "--score",
    ]
    assert main([*MAKE, *asked, "-o", "out/song.wav"]) == 0
    captured = capsys.readouterr()
    files = ["out/song.lrc", "out/song.srt", "out/song.vtt", "out/song.png"]
    assert f"out/song.wav: lyrics in time: {', '.join(files)}" in captured.out
    assert re.search(
        r"lyric score [01]\.\d{4} \(coverage [01]\.\d{3}, monotonicity [01]\.\d{3}, "
        r"confidence [01]\.\d{3}; from noise [01]\.\d{4}\)",
        captured.out,
    )
    assert "does not sing" in captured.err
    lrc = Path("out/song.lrc").read_text(encoding="utf-8")
    assert lrc.startswith("[ti:song]\n[length:00:01]\n[by:acestep]\n")
    assert re.search(rf"{LINE}<\d\d:\d\d\.\d\d>Hello <", lrc)
    assert re.search(rf"{LINE}\n\Z", lrc)
    assert "[verse]" not in lrc
    assert "00:00:0" in Path("out/song.srt").read_text(encoding="utf-8")
    assert Path("out/song.vtt").read_text(encoding="utf-8").startswith("WEBVTT\n")
    with Image.open("out/song.png") as image:
        assert image.format == "PNG"
    left = sorted(path.name for path in Path("out").iterdir())
    assert left == sorted(["song.wav", "song.json", *(Path(name).name for name in files)])


def test_generate_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--lyrics", LYRICS, "--lrc", "--score", "--keep-tags", "--json", "-o", "song.wav"]
    assert main([*MAKE, *asked]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["lyric_files"] == ["song.lrc"]
    assert set(record["lyric_score"]) >= {"lyrics_score", "coverage", "lm_score"}
    assert "[verse]" in Path("song.lrc").read_text(encoding="utf-8")


def test_generate_without_lyric_options_writes_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MAKE, "--lyrics", LYRICS, "-o", "song.wav"]) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["song.json", "song.wav"]
    assert "lyric" not in capsys.readouterr().out


def test_align_writes_an_lrc_by_default(
    song_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("words.txt").write_text("夜空\nla la", encoding="utf-8")
    assert main([*ALIGN, "--lyrics", "@words.txt"]) == 0
    assert capsys.readouterr().out == "chord.wav: lyrics in time: chord.lrc\n"
    lines = Path("chord.lrc").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["[ti:chord]", "[length:00:02]", "[by:acestep]"]
    assert [re.sub(LINE, "", line) for line in lines[3:]] == ["夜空", "la la"]


def test_align_in_json_and_with_chosen_heads(
    song_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = []
    for heads in ([], ["--lyric-heads", "0:1 2:0,3"]):
        assert main([*ALIGN, "--lyrics", "la la", "--score", "--json", *heads]) == 0
        record = json.loads(capsys.readouterr().out)
        assert (record["path"], record["lyric_files"]) == ("chord.wav", [])
        scores.append(record["lyric_score"])
    assert scores[0] != scores[1]
    assert sorted(path.name for path in Path().iterdir()) == ["chord.wav"]


@pytest.mark.parametrize(("lyrics", "warned"), [("la la\nlo lo", True), ("la la", False)])
def test_times_that_say_nothing_are_pointed_out(
    lyrics: str, warned: bool, song_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Untrained heads attend nowhere in particular, so the last token gets the whole song."""
    assert main([*ALIGN, "--lyrics", lyrics]) == 0
    assert ("no clear times" in capsys.readouterr().err) == warned


def test_quiet_says_nothing_of_what_went_well(
    song_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ALIGN, "--lyrics", "la la", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("chord.lrc").is_file()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], message: str) -> None:
    """Exit code 2, one line that says why, and nothing written."""
    before = sorted(Path().iterdir())
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [text for text in captured.err.splitlines() if "error" in text]
    assert message in line
    assert "Traceback" not in captured.err
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("command", [[*MAKE, "--lrc"], ALIGN])
@pytest.mark.parametrize(
    ("lyrics", "message"),
    [("", "are empty"), (" \n", "are empty"), ("[verse]\n[outro]", "only section tags")],
)
def test_nothing_to_sing(
    command: list[str],
    lyrics: str,
    message: str,
    song_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused([*command, "--lyrics", lyrics], capsys, message)


def test_instrumental_has_nothing_to_align(capsys: pytest.CaptureFixture[str]) -> None:
    refused([*MAKE, "--lyrics", LYRICS, "--instrumental", "--score"], capsys, "are empty")


@pytest.mark.parametrize("suffix", [".lrc", ".srt", ".vtt", ".png"])
def test_files_are_not_overwritten_unasked(
    suffix: str, song_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"chord{suffix}").write_text("mine")
    asked = "--plot" if suffix == ".png" else f"--{suffix[1:]}"
    refused([*ALIGN, "--lyrics", "la", asked], capsys, f"chord{suffix} exists")
    assert Path(f"chord{suffix}").read_text() == "mine"


def test_force_overwrites(song_file: Path) -> None:
    Path("chord.lrc").write_text("mine")
    assert main([*ALIGN, "--lyrics", "la", "--force"]) == 0
    assert "la" in Path("chord.lrc").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lyric-heads", "nonsense"], "'nonsense' are not of the form"),
        (["--lyrics", "@missing.txt"], "cannot read lyrics from missing.txt"),
    ],
)
def test_bad_options(
    change: list[str], message: str, song_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused([*ALIGN, "--lyrics", "la", *change], capsys, message)


def test_missing_song(capsys: pytest.CaptureFixture[str]) -> None:
    refused([*ALIGN, "--lyrics", "la"], capsys, "chord.wav: no such audio file")


def test_heads_that_do_not_exist(song_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*ALIGN, "--lyrics", "la", "--lyric-heads", "99:0"]
    refused(arguments, capsys, "lyric head 99:0 does not exist")


def test_checkpoint_without_a_table(
    base_folder: Path, song_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["align", "chord.wav", "--device", "cpu", "--model", str(base_folder)]
    refused([*arguments, "--lyrics", "la"], capsys, "no table of lyric heads is known")
    assert main([*arguments, "--lyrics", "la", "--lyric-heads", "1:0"]) == 0
    assert "does not sing" not in capsys.readouterr().err
