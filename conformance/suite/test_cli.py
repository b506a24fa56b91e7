"""The command line: choices and help through the real parser, songs through the real program."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import soundfile

from conformance.entrypoints import covers
from conformance.launch import launch
from conformance.suite.support import SAMPLE_RATE, Api, absent_device, backends, tone
from conformance.targets import Target
from conformance.tree import Tree

MODULE = "acestep.acestep_v15_pipeline"
DEVICES = {"auto", "cuda", "mps", "cpu"}


class Parsed(Exception):  # noqa: N818 (carries a parser out of the program)
    """The program has built its parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@contextmanager
def arguments(*values: str) -> Iterator[None]:
    """The process's command line, for programs that read it themselves."""
    before = sys.argv
    sys.argv = ["acestep", *values]
    try:
        yield
    finally:
        sys.argv = before


def real_parser(main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The parser that the program itself builds, caught at the moment it would be used."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise Parsed(parser)

    with monkeypatch.context() as patch, arguments():
        for name in ("parse_args", "parse_known_args"):
            patch.setattr(argparse.ArgumentParser, name, stop)
        # A program may turn every exception into an exit code; this one leaves with it.
        caught: list[Parsed] = []
        original = Parsed.__init__

        def remember(self: Parsed, parser: argparse.ArgumentParser) -> None:
            original(self, parser)
            caught.append(self)

        patch.setattr(Parsed, "__init__", remember)
        try:
            main()
        except (Parsed, SystemExit):
            assert caught, "the program ended before it built a parser"
    return caught[0].parser


def run_main(api: Api, *values: str) -> int:
    """The exit status of the program run in this process."""
    main = api.get("acestep_v15_pipeline:main")
    with arguments(*values):
        try:
            status = main()
        except SystemExit as leave:
            status = leave.code
    return int(status or 0)


@covers("S3", "acestep_v15_pipeline:main")
def test_device_choices(api: Api, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = real_parser(api.get("acestep_v15_pipeline:main"), monkeypatch)
    option = next(a for a in parser._actions if "--device" in a.option_strings)
    offered = set(option.choices)
    assert offered == DEVICES, f"--device offers {sorted(offered)}; {api.literal(offered)}"
    assert option.default == "auto", api.option("--device")
    assert "{auto,cuda,mps,cpu}" in parser.format_help()
    for name in DEVICES:
        assert parser.parse_known_args(["--device", name])[0].device == name


@covers("S5", "acestep_v15_pipeline:main")
def test_backend_default(api: Api, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = real_parser(api.get("acestep_v15_pipeline:main"), monkeypatch)
    option = next(a for a in parser._actions if "--backend" in a.option_strings)
    assert {"pt", "vllm"} <= set(option.choices)
    chosen = parser.parse_known_args(["--device", target.device])[0]
    backend, why = chosen.backend, api.option("--backend")
    if backend is None:
        resolve_options = api.get("acestep_v15_pipeline:resolve_options")
        _, backend = resolve_options(chosen)
        why = api.decided_at(lambda: resolve_options(chosen))
    right = backends(target)
    assert backend in right, f"the default is {backend} on {target.device}; {why}"


@covers("S5", "A1", "acestep_v15_pipeline:build_parser", "acestep_v15_pipeline:resolve_options")
def test_backend_the_device_cannot_run(api: Api, target: Target) -> None:
    resolve_options = api.get("acestep_v15_pipeline:resolve_options")
    parser = api.get("acestep_v15_pipeline:build_parser")()
    chosen = parser.parse_args(["--device", target.device, "--backend", "pt"])
    assert resolve_options(chosen)[1] == "pt"
    if target.device != "cuda":
        wrong = parser.parse_args(["--device", target.device, "--backend", "vllm"])
        with pytest.raises(api.get("errors:RequestError"), match="vllm"):
            resolve_options(wrong)


@covers("acestep_v15_pipeline:main", "console.terminal:OneLineParser.error")
@pytest.mark.parametrize("value", ["gpu", "rocm", "cuda0", ""])
def test_unknown_device(
    api: Api, target: Target, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert run_main(api, "--device", value) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "device" in line


@covers("acestep_v15_pipeline:main", "device.choosing:resolve")
@pytest.mark.names_cuda("the case itself asks for a device that is absent")
def test_absent_device(
    api: Api, target: Target, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    api.get("cli.generate:run")
    absent, out = absent_device(target), tmp_path / "song.wav"
    status = run_main(
        api, "generate", "piano", "--model", "demo", "--device", absent, "-o", str(out)
    )
    assert status == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert absent in error
    assert not out.exists()


@covers("cli.devices:*", "acestep_v15_pipeline:main", "console.terminal:result")
@pytest.mark.lists_devices("the command reports on every device of this machine")
def test_devices_command(api: Api, target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    api.get("cli.devices:run")
    assert run_main(api, "devices") == 0
    assert "mps" in capsys.readouterr().out
    assert run_main(api, "devices", "--json") == 0
    found = {d["name"]: d for d in json.loads(capsys.readouterr().out)["devices"]}
    assert found["cpu"]["available"]
    assert found[target.device]["available"]
    assert run_main(api, "devices", "--plan") == 0
    assert "this machine: a working set of" in capsys.readouterr().out
    assert run_main(api, "devices", "--plan", "16", "--json") == 0
    assert json.loads(capsys.readouterr().out)["best"]["longest"] == 600


@covers(
    "A1",
    "acestep_v15_pipeline:main",
    "cli.generate:*",
    "cli.file_options:*",
    "cli.song_options:*",
    "cli.lyrics:*",
    "console.terminal:progress_bar",
    "console.terminal:quiet_libraries",
    "console.terminal:say",
    "console.terminal:insistent_interrupts",
    "console.terminal:add_device_option",
    "console.terminal:add_everywhere",
    "alignment.plot:*",
    "alignment.lyric_files:*",
    "alignment.words:*",
    "song.audio_files:encode",
    "song.formats:encoding",
    "song.formats:file_format",
    "song.placing:part_beside",
    "song.placing:place",
    "song.placing:replacing",
    "song.saving:alternatives",
    "song.saving:record_paths",
    "song.saving:save",
    "song.tags:*",
    "alignment.service:LyricAlignmentMixin.align_lyrics",
)
def test_generate_command(api: Api, target: Target, tmp_path: Path) -> None:
    """A song with everything that can lie beside it, in this process."""
    api.get("cli.generate:run")
    out = tmp_path / "song.wav"
    lyrics = tmp_path / "words.txt"
    lyrics.write_text("[verse]\nhello there\nworld", encoding="utf-8")
    options = ["--lrc", "words", "--lrc-ends", "--srt", "--vtt", "--plot", "--score"]
    made = ["--model", "demo", "--duration", "0.5", "--steps", "2", "--seed", "3"]
    status = run_main(
        api, "generate", "piano", "--lyrics", f"@{lyrics}", "--device", target.device,
        "-o", str(out), *made, *options,
    )  # fmt: skip
    assert status == 0
    assert sorted(p.suffix for p in tmp_path.iterdir()) == sorted(
        [".wav", ".json", ".lrc", ".srt", ".vtt", ".png", ".txt"]
    )
    assert soundfile.info(out).samplerate == SAMPLE_RATE
    assert json.loads(out.with_suffix(".json").read_text())["device"].startswith(target.device)


@covers("A1", "cli.align:*", "acestep_v15_pipeline:main", "song.audio_files:read")
def test_align_command(api: Api, target: Target, tmp_path: Path) -> None:
    api.get("cli.align:run")
    source = tmp_path / "song.wav"
    soundfile.write(source, tone(0.6).T.numpy(), SAMPLE_RATE)
    status = run_main(
        api, "align", str(source), "--lyrics", "hello\nworld", "--model", "demo",
        "--device", target.device, "--quiet", "--score",
    )  # fmt: skip
    assert status == 0
    status = run_main(
        api, "align", str(source), "--lyrics", "hello\nworld", "--model", "demo",
        "--device", target.device, "--quiet", "--lrc",
    )  # fmt: skip
    assert status == 0
    assert source.with_suffix(".lrc").read_text(encoding="utf-8").endswith("world\n")


@covers("S3", "A1", "A3")
def test_in_a_process_of_its_own(tree: Tree, api: Api, target: Target, tmp_path: Path) -> None:
    """`acestep generate` as a user runs it, with the tripwire armed over there."""
    api.get("acestep_v15_pipeline:main")
    if not tree.has_module("acestep.cli.generate"):
        told = launch(tree, target, MODULE, ["--help"])
        assert told.status == 0, told.errors
        assert not told.touches, "\n".join(told.touches)
        assert "mps" in told.output
        return
    made = launch(
        tree,
        target,
        MODULE,
        (
            f"generate piano --model demo --duration 0.5 --steps 2 --device {target.device} "
            "-o song.flac --json"
        ).split(),
        folder=tmp_path,
    )
    assert made.status == 0, made.errors
    assert not made.touches, "\n".join(made.touches)
    record = json.loads(made.output)[0]
    assert record["device"].startswith(target.device)
    assert soundfile.info(tmp_path / "song.flac").channels == 2
