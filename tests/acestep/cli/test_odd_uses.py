"""Odd uses of the command line, none of which crashes, loses anything or says what is not so."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep.acestep_v15_pipeline import main

QUICK = ["generate", "warm piano", "--model", "demo", "--duration", "0.6", "--steps", "1"]
LONG = "n" * 300
RAW = os.fsdecode(b"caf\xe9")
"""A name in Latin-1, as old disks have them."""


def ran(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def found(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Input(io.TextIOWrapper):
    """Standard input that holds some bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="ascii")


@pytest.fixture
def _things(tmp_path: Path) -> None:
    """Files of all the wrong kinds."""
    time = np.arange(48000) / 48000
    soundfile.write(tmp_path / "one.wav", 0.3 * np.sin(2 * np.pi * 220 * time), 48000)
    soundfile.write(tmp_path / "short.wav", np.zeros((100, 2)), 48000)
    soundfile.write(tmp_path / "nan.wav", np.full((48000, 2), np.nan), 48000, subtype="FLOAT")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "words.txt").write_text("la la", encoding="utf-8")
    (tmp_path / "empty").touch()
    (tmp_path / "taken.flac").write_text("mine", encoding="utf-8")
    (tmp_path / "codes.txt").write_text("<|audio_code_1|>" * 100_000, encoding="utf-8")
    (tmp_path / "cut.flac").write_bytes(b"fLaC" + bytes(30))
    (tmp_path / "deep.jsonl").write_text("[" * 100_000, encoding="utf-8")
    (tmp_path / "twice.jsonl").write_text('{"caption": "a", "id": "A"}\n' * 2, encoding="utf-8")
    (tmp_path / "two.jsonl").write_text('{"caption": "a", "seed": [1, 2]}', encoding="utf-8")
    (tmp_path / "odd.jsonl").write_text('{"caption": "a", "id": "a/b"}', encoding="utf-8")
    (tmp_path / "none.jsonl").write_text("\n \n", encoding="utf-8")


@pytest.mark.usefixtures("_things")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # The prompt and the words.
        ([*QUICK, "--lyrics", "@missing"], "cannot read lyrics from missing: No such file"),
        ([*QUICK, "--lyrics", "@latin.txt"], "cannot read lyrics from latin.txt: not UTF-8 text"),
        ([*QUICK, "--lyrics", "@/dev/zero"], "it holds more than 4 MiB"),
        ([*QUICK, "--lyrics", "@~nobody-here/x"], "cannot read lyrics from ~nobody-here/x"),
        ([*QUICK, "--lyrics", f"@{LONG}"], "File name too long"),
        ([*QUICK, "--lyrics", "@"], "Is a directory"),
        (["generate", "-", "--lyrics", "@-"], "standard input can be one thing"),
        (["generate", "-"], "the prompt is empty"),
        (["generate", "piano", "violin"], "unrecognized arguments: violin"),
        (["generate", f"a {RAW}", "--model", "demo"], "the prompt holds bytes that are no text"),
        ([*QUICK, "--language", "en,de"], "unknown language 'en,de'"),
        # Codes.
        ([*QUICK, "--codes", "@missing"], "cannot read codes from missing"),
        ([*QUICK, "--codes", "@codes.txt"], "length of the audio codes 20000 is out of range"),
        ([*QUICK, "--codes", "12 13"], "the audio codes hold no"),
        ([*QUICK, "--task", "repaint", "--codes", "<|audio_code_1|>"], "needs source audio"),
        # How many, which, how long.
        ([*QUICK, "--batch", "1000000000"], "batch size 1000000000 is out of range"),
        ([*QUICK, "--batch", "1e9"], "invalid int value: '1e9'"),
        ([*QUICK, "--seed", "1,2,3", "--batch", "2"], "there are 3 seeds for 2 songs"),
        ([*QUICK, "--seed", "1.5"], "seed '1.5' is not a whole number"),
        ([*QUICK, "--seed", "9" * 30], "seed beyond 1e+20 is out of range"),
        (["generate", "x", "--duration", "0:00"], "duration 0 is out of range"),
        (["generate", "x", "--duration", "10:01"], "duration 601 is out of range"),
        (["generate", "x", "--duration", "1_0"], "invalid float value: '1_0'"),
        ([*QUICK, "--bpm", "fast"], "bpm 'fast' is not a number"),
        ([*QUICK, "--timesteps", "0.5,1"], "timesteps must be falling"),
        ([*QUICK, "--guidance-scale", "nan"], "guidance scale nan is out of range"),
        # Audio to work on.
        ([*QUICK, "--source", "."], ".: no such audio file"),
        ([*QUICK, "--source", "/dev/zero"], "/dev/zero: no such audio file"),
        ([*QUICK, "--source", "short.wav"], "length of the source audio"),
        ([*QUICK, "--source", "nan.wav"], "holds samples that are not numbers"),
        ([*QUICK, "--source", "cut.flac"], "cut.flac: not readable as audio"),
        ([*QUICK, "--source", f"{LONG}.wav"], "File name too long"),
        ([*QUICK, "--source", f"{RAW}.wav"], "caf\\udce9.wav: no such audio file"),
        ([*QUICK, "--source", "one.wav", "--repaint", "2:3"], "starts at 2 s; the source audio"),
        ([*QUICK, "--source", "one.wav", "--repaint", "0:700"], "with its new ends 700 is out"),
        ([*QUICK, "--source", "one.wav", "--repaint", "nan:1"], "does not run forward"),
        ([*QUICK, "--source", "one.wav", "--repaint", ":-1"], "does not run forward"),
        # Where the song goes.
        ([*QUICK, "-o", f"{LONG}.wav"], "304 bytes long; give one of at most 250"),
        ([*QUICK, "-o", "ü" * 126 + ".wav"], "256 bytes long"),
        ([*QUICK, "-o", f"{LONG}/song.wav"], "300 bytes long"),
        ([*QUICK, "-o", f"{RAW}.wav"], "caf\\udce9.wav holds bytes that are no text"),
        ([*QUICK, "-o", ".wav"], "there is no name before the ending; give for example song.wav"),
        ([*QUICK, "-o", "wav"], "wav: unknown audio format"),
        ([*QUICK, "-o", ""], "unknown audio format"),
        ([*QUICK, "-o", "taken.flac"], "taken.flac exists; overwrite it with --force"),
        ([*QUICK, "-o", "empty/x.wav"], "cannot write to"),
        # Models.
        ([*QUICK, "--model", "turbo"], "fetch it with: acestep download turbo"),
        ([*QUICK, "--model", "somebody/else"], "fetch it with: acestep download somebody/else"),
        ([*QUICK, "--model", LONG], "File name too long"),
        ([*QUICK, "--lora", "missing.safetensors"], "missing.safetensors: no such adapter file"),
        ([*QUICK, "--think", "--lm-model", "none"], "no language model 'none' on this machine"),
        # The other commands.
        (["inspire", "x", "--temperature", "nan"], "lm temperature nan is out of range"),
        (["inspire", "x", "--language", "klingon"], "unknown language 'klingon'"),
        (["inspire", "x", "--seed", "-5"], "seed -5 is out of range"),
        (["inspire", " "], "the query is empty"),
        (["understand", "words.txt", "--model", "demo"], "not readable as audio"),
        (["understand", "one.wav", "--temperature", "-1"], "lm temperature -1 is out of range"),
        (["align", "one.wav", "--lyrics", "[verse]"], "the lyrics hold only section tags"),
        (["align", "one.wav", "--lyrics", "@missing"], "cannot read lyrics from missing"),
        (["batch", "one.wav", "-o", "out"], "one.wav: cannot be read (not UTF-8 text)"),
        (["batch", ".", "-o", "out"], ".: cannot be read (Is a directory)"),
        (["batch", "deep.jsonl", "-o", "out"], "deep.jsonl:1: not JSON"),
        (["batch", "twice.jsonl", "-o", "out"], ":2: the id 'A' is taken by another line"),
        (["batch", "two.jsonl", "-o", "out"], "the seed must be a whole number"),
        (["batch", "odd.jsonl", "-o", "out"], "the id 'a/b' cannot name a file"),
        (["batch", "none.jsonl", "-o", "out"], "holds no prompt"),
        (["batch", "words.txt", "-o", "out", "--format", "wav", "--bitrate", "9"], "no bit rate"),
        (["train", "--data", "empty", "-o", "x.lora"], "empty: no such folder"),
        (["train", "--data", ".", "-o", "taken.flac"], "no run of its own lies beside it"),
        (["download", "../up"], "is not on the Hugging Face Hub"),
        (["download", ""], "unknown checkpoint ''"),
        (["bench", "--repeats", "0"], "give at least 1 repeat"),
        (["sing", "a song"], "invalid choice: 'sing'"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_refused_in_one_line_before_anything_is_done(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", Input(b""))
    before = found(tmp_path)
    assert ran(arguments) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if "does not sing" not in line]
    assert len(lines) == 1, lines
    assert expected in lines[0]
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert found(tmp_path) == before


def test_words_come_through_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a name in another script, an ending in capitals, and options after the subcommand."""
    monkeypatch.setattr("sys.stdin", Input("\ufeffpiano 🎹, Grüße\n".encode()))
    Path("words.txt").write_bytes("\ufeff[verse]\r\nla la\r\n".encode())
    options = ["--model", "demo", "--duration", "0.6", "--steps", "8", "--lyrics", "@words.txt"]
    assert main(["generate", "-", *options, "--debug", "-q", "-o", "歌 é.WAV"]) == 0
    assert capsys.readouterr() == ("", "")
    record = json.loads(Path("歌 é.json").read_text(encoding="utf-8"))
    assert record["asked"]["caption"] == record["caption"] == "piano 🎹, Grüße"
    assert record["lyrics"] == "[verse]\nla la\n"
    assert soundfile.info("歌 é.WAV").frames == 28800
    monkeypatch.setattr("sys.stdin", Input(b"[chorus]\nla"))
    assert main([*QUICK, "--lyrics", "@-", "-o", "sung.ogg", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["lyrics"] == "[chorus]\nla"


@pytest.mark.usefixtures("_things")
def test_two_seeds_are_two_songs_and_what_is_ignored_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ignored = ["--track", "vocals", "--keep", "metas", "--repaint-mode", "aggressive"]
    assert main([*QUICK, "--seed", "5,3", "--guidance-scale", "3", *ignored]) == 0
    said = capsys.readouterr().err
    for words in ("the track is left out", "without --think: --keep", "guidance in its weights",
                  "without --repaint: --repaint-mode"):  # fmt: skip
        assert words in said
    seeds = [json.loads(Path(f"song-{n}.json").read_text())["seed"] for n in (1, 2)]
    assert seeds == [5, 3]


@pytest.mark.usefixtures("_things")
def test_a_repaint_with_a_loudness_keeps_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    """From a file whose name is no text, beyond its end, under a link that leads nowhere."""
    os.rename("one.wav", f"{RAW}.wav")
    os.symlink("nowhere.wav", "link.wav")
    options = ["--source", f"{RAW}.wav", "--repaint", "0.5:1.5", "--loudness", "-20"]
    options += ["--bit-depth", "16", "--duration", "9", "-o", "link.wav"]
    assert main([*QUICK[:4], "--steps", "1", *options]) == 0
    printed = capsys.readouterr()
    assert "link.wav came to exist meanwhile and is kept" in printed.err
    assert "the duration is left out: with repaint a song is as long as its source" in printed.err
    assert "the rest keeps the level of the source" in printed.err
    assert os.readlink("link.wav") == "nowhere.wav"
    record = json.loads(Path("link-2.json").read_text(encoding="utf-8"))
    assert record["src_audio"] == f"{RAW}.wav"
    assert record["asked"]["repaint"] == record["repaint"] == [0.5, 1.5]
    assert record["seconds"] == 1.5
    made, _ = soundfile.read("link-2.wav", dtype="int16")
    source, _ = soundfile.read(os.fsencode(f"{RAW}.wav"), dtype="int16")
    assert len(made) == 72000
    kept = round(0.4 * 48000)
    assert (made[:kept] == source[:kept, None]).all()


def test_a_song_may_take_the_place_of_its_source_when_told_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*QUICK, "-q", "-o", "song.wav"]) == 0
    first = Path("song.wav").read_bytes()
    again = [*QUICK[:4], "--steps", "1", "-q", "--source", "song.wav", "-o", "song.wav"]
    assert main(again) == 2
    assert Path("song.wav").read_bytes() == first
    assert main([*again, "--force"]) == 0
    assert json.loads(Path("song.json").read_text())["task"] == "cover"
    assert "exists; overwrite it with --force" in capsys.readouterr().err


def test_planned_words_stand_beside_the_persons_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "warm piano", "--steps", "8", "--duration", "0.6", "--think"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "a toy" in line]) == 2, "checkpoint and planner, once each"
    record = json.loads(Path("song.json").read_text())
    assert record["asked"]["caption"] == "warm piano"
    assert record["planned"]["caption"] == record["caption"]
    import mutagen

    assert mutagen.File("song.flac").tags["comment"] == ["warm piano"]


def test_a_batch_file_as_editors_and_scripts_leave_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte order mark, DOS lines, blanks, a line twice, numbers that are none, words that are none."""
    short: dict[str, Any] = {"duration": 0.6, "inference_steps": 8}
    lines = [
        json.dumps({"caption": "bells", **short}), "", json.dumps({"caption": "bells", **short}),
        '{"caption": "x", "bpm": NaN}', '{"caption": 5}', '{"caption": "x", "src_audio": "\\u0000"}',
        '{"caption": "x", "duration": 1e400}', '{"caption": "x", "lyrics": ["la"]}',
    ]  # fmt: skip
    Path("p.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    batch = ["batch", "p.jsonl", "-o", "out", "--config_path", "demo", "--devices", "cpu", "-q"]
    assert main(batch) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 5, printed.err
    assert all(line.startswith("acestep: failed: ") for line in printed.err.splitlines())
    songs = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.flac")}
    assert len(songs) == 2
    kept = [json.dumps({"caption": "new", **short, "seed": 1}), *lines[:3]]
    Path("p.jsonl").write_text("\n".join(kept), encoding="utf-8")
    assert main(batch) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.flac")}
    assert len(after) == 3
    assert songs.items() <= after.items(), "nothing was made twice"


@pytest.mark.soak
def test_a_locale_without_letters(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    arguments = [*QUICK[2:], "--lyrics", "Grüße", "--json", "-o", "song.wav"]
    run = subprocess.run(
        [sys.executable, "-m", "acestep", "generate", "Grüße 🎹".encode(), *arguments],
        capture_output=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "song.json").read_text(encoding="utf-8"))
    assert (record["caption"], record["lyrics"]) == ("Grüße 🎹", "Grüße")
    assert json.loads(run.stdout)[0]["caption"] == "Grüße 🎹"
