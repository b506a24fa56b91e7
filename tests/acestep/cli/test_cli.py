"""Tests of the command line: results, refusals, exit codes, and what is left on disk."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
import soundfile

from acestep import __version__
from acestep.acestep_v15_pipeline import build_parser, main, resolve_options
from acestep.cli import generate
from acestep.console import terminal as console
from acestep.device import DEVICE_CHOICES, resolve
from acestep.errors import RequestError

QUICK = ["generate", "warm piano", "--model", "demo", "--duration", "0.6", "--steps", "1"]


def files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_song_with_its_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--seed", "7", "--key", "C major", "-o", "song.flac"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("song.flac: 0.6 s of audio in ")
    assert f" on {resolve().name}, peak " in printed.out
    assert printed.out.count("\n") == 1
    samples, rate = soundfile.read("song.flac")
    assert rate == 48000
    assert samples.shape == (28800, 2)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() > 0.5
    record = json.loads(Path("song.json").read_text())
    assert (record["seed"], record["key"]) == (7, "C major")
    assert files(tmp_path) == ["song.flac", "song.json"]


@pytest.mark.parametrize("kind", ["wav", "mp3", "ogg"])
def test_formats_by_extension(kind: str) -> None:
    assert main([*QUICK, "--quiet", "-o", f"out/song.{kind}"]) == 0
    assert soundfile.info(f"out/song.{kind}").samplerate == 48000


@pytest.mark.parametrize(
    ("options", "name", "subtype"),
    [
        (["--format", "wav", "--bit-depth", "24"], "song.wav", "PCM_24"),
        (["-o", "out.wav", "--bit-depth", "32"], "out.wav", "FLOAT"),
        (["-o", "out", "--format", "opus", "--bitrate", "96"], "out.opus", "OPUS"),
        (["--format", "mp3", "--bitrate", "320"], "song.mp3", "MPEG_LAYER_III"),
    ],
)
def test_formats_by_option(options: list[str], name: str, subtype: str) -> None:
    assert main([*QUICK, "--quiet", "--seed", "3", *options]) == 0
    info = soundfile.info(name)
    assert (info.subtype, info.frames) == (subtype, 28800)
    assert mutagen.File(name).tags is not None


def test_two_kinds_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("song.flac", "song.wav"):
        assert main([*QUICK, "--quiet", "-o", name]) == 0
    assert files(tmp_path) == ["song.flac", "song.json", "song.wav", "song.wav.json"]
    assert main([*QUICK, "--quiet", "-o", "song.wav"]) == 2
    assert "song.wav exists; overwrite it with --force" in capsys.readouterr().err
    assert main([*QUICK, "--quiet", "--force", "--seed", "9", "-o", "song.wav"]) == 0
    assert json.loads(Path("song.wav.json").read_text())["seed"] == 9
    assert json.loads(Path("song.json").read_text())["file"] == "song.flac"


def test_a_file_that_came_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process is done first; both songs are kept, and which is which is said."""
    check = generate.check_output

    def and_then_another(paths: list[Path], *rest: Any) -> None:
        check(paths, *rest)
        paths[0].write_text("theirs")

    monkeypatch.setattr(generate, "check_output", and_then_another)
    assert main([*QUICK, "--seed", "5", "-o", "song.flac"]) == 0
    printed = capsys.readouterr()
    assert "song.flac came to exist meanwhile and is kept; this is song-2.flac" in printed.err
    assert printed.out.startswith("song-2.flac: ")
    assert files(tmp_path) == ["song-2.flac", "song-2.json", "song.flac"]
    assert Path("song.flac").read_text() == "theirs"


def test_json_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--json", "-o", "song.wav"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["path"] == "song.wav"
    assert record["seconds_taken"] > 0
    assert record["peak_memory_gib"] > 0
    assert set(record["stages"]) == {"diffusion", "decoding"}


def test_batch_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "80")
    assert main([*QUICK, "--quiet", "--batch", "2", "--seed", "3"]) == 0
    assert files(tmp_path) == ["song-1.flac", "song-1.json", "song-2.flac", "song-2.json"]
    seeds = [json.loads(Path(f"song-{n}.json").read_text())["seed"] for n in (1, 2)]
    assert seeds == [3, 4]


def test_more_songs_than_fit_are_made_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "4")
    assert main([*QUICK, "--quiet", "--seed", "3,9"]) == 0
    assert files(tmp_path) == ["song-1.flac", "song-1.json", "song-2.flac", "song-2.json"]
    seeds = [json.loads(Path(f"song-{n}.json").read_text())["seed"] for n in (1, 2)]
    assert seeds == [3, 9]


def test_what_is_too_long_is_refused_or_shortened_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("acestep.gpu_config._TIERS", ((4, "tiny", 1, 1, 1, 1, False, ()),))
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "4")
    long = [*QUICK, "--duration", "3", "-o", "song.wav"]
    assert main(long) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 s is above the limit of 1 s for tiny" in error
    assert "shortened to that with --fit" in error
    assert files(tmp_path) == []
    assert main([*long, "--fit"]) == 0
    assert "making 1 s" in capsys.readouterr().err
    record = json.loads(Path("song.json").read_text())
    assert (record["seconds"], record["duration"], record["asked"]["duration"]) == (1.0, 1.0, 3.0)
    assert any("above the limit" in line for line in record["warnings"])


def test_auto_says_that_the_demo_is_a_toy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--duration", "0.6", "--steps", "1"]) == 0
    notice = capsys.readouterr().err.splitlines()[0]
    assert "toy" in notice
    assert "acestep download turbo" in notice


def test_cover_repaint_and_lyrics(song_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lyrics = Path("words.txt")
    lyrics.write_text("[verse]\nhello ♪\n", encoding="utf-8-sig")
    common = [*QUICK, "--source", str(song_file), "--lyrics", f"@{lyrics}", "--json"]
    assert main([*common, "-o", "cover.flac"]) == 0
    assert main([*common, "--repaint", "0.5:1", "-o", "repaint.flac"]) == 0
    assert main([*common, "--repaint", "1:", "-o", "r.flac"]) == 0
    cover, repaint, rest = (
        json.loads(Path(f"{name}.json").read_text()) for name in ("cover", "repaint", "r")
    )
    assert (cover["task"], repaint["task"], rest["task"]) == ("cover", "repaint", "repaint")
    assert cover["lyrics"] == "[verse]\nhello ♪\n"
    assert cover["src_audio"] == str(song_file)
    assert repaint["repaint"] == [0.5, 1.0]
    assert cover["seconds"] == 2.0


def bad_audio(tmp_path: Path) -> None:
    (tmp_path / "text.mp3").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 2)), 48000)
    (tmp_path / "taken.flac").write_text("old")
    (tmp_path / "folder.flac").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--device", "tpu"], "invalid choice: 'tpu' (choose from 'auto', 'cuda', 'mps', 'cpu')"),
        (["--device", "mps"], "device 'mps' is not available here"),
        (["--device", "cuda:7"], "device 'cuda:7' is not available here"),
        (["--duration", "-5"], "duration -5 is out of range"),
        (["--duration", "1e9"], "duration 1e+09 is out of range; expected 0.5 to 600 seconds"),
        (["--duration", "nan"], "duration nan is out of range"),
        (["--duration", "long"], "invalid float value: 'long'"),
        (["--source", "text.mp3"], "text.mp3: not readable as audio"),
        (["--source", "empty.wav"], "empty.wav: holds no audio"),
        (["--source", "none.wav"], "none.wav: no such audio file"),
        (["--reference", "none.wav"], "none.wav: no such audio file"),
        (["--repaint", "20:10"], "'20:10' does not run forward"),
        (["--repaint", "soon"], "'soon' is not a range"),
        (["--repaint", "0:1"], "the task 'repaint' needs source audio"),
        (["--task", "extract"], "needs source audio"),
        (["--task", "remix"], "invalid choice: 'remix'"),
        (["--key", "H major"], "unknown key 'H major'"),
        (["--time-signature", "7"], "unknown time signature '7'"),
        (["--language", "klingon"], "unknown language 'klingon'"),
        (["--bpm", "1000"], "bpm 1000 is out of range"),
        (["--seed", "-1"], "seed -1 is out of range"),
        (["--batch", "0"], "batch size 0 is out of range"),
        (["--steps", "0"], "number of steps 0 is out of range"),
        (["--model", "missing/folder/here"], "no checkpoint folder 'missing/folder/here'"),
        (["--model", "broken"], "model_index.json: not readable as JSON"),
        (["--device", "cpu", "--offload", "all"], "offloading is pointless on cpu"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--flash-attention"], "flash attention is not available"),
        (["--lyrics", "@none.txt"], "cannot read lyrics from none.txt"),
        (["-o", "song.wma"], "song.wma: unknown audio format"),
        (["-o", "song.flac", "--format", "mp3"], "song.flac does not end in .mp3"),
        (["--format", "wma"], "invalid choice: 'wma'"),
        (["--bit-depth", "32"], "flac cannot have a bit depth of 32; choose 16 or 24"),
        (["--format", "mp3", "--bit-depth", "16"], "mp3 cannot have a bit depth"),
        (["--format", "mp3", "--bitrate", "300"], "mp3 has no bit rate of 300 kbit/s"),
        (["--bitrate", "192"], "flac has no bit rate to choose"),
        (["--loudness", "3"], "loudness 3 is out of range"),
        (["-o", "taken.flac"], "taken.flac exists; overwrite it with --force"),
        (["-o", "folder.flac"], "folder.flac is a folder"),
        (["-o", "taken.flac/song.flac"], "cannot write to"),
        (["-o", "/proc/song.flac"], "choose another place with -o"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_audio(tmp_path)
    before = files(tmp_path)
    try:
        code = main([*QUICK, *options])
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    assert code == 2
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert files(tmp_path) == before
    assert (tmp_path / "taken.flac").read_text() == "old"


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_an_empty_prompt(prompt: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["generate", prompt, "--model", "demo"]) == 2
    assert "the prompt is empty" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_task_that_the_checkpoint_lacks(
    song_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--task", "lego", "--source", str(song_file)]) == 2
    assert "cannot do the task 'lego'" in capsys.readouterr().err
    assert not Path("song.flac").exists()


def test_a_truncated_checkpoint(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(base_folder, "cut")
    file = Path("cut/vae/diffusion_pytorch_model.safetensors")
    file.write_bytes(file.read_bytes()[:-7])
    assert main([*QUICK, "--model", "cut"]) == 2
    assert "diffusion_pytorch_model.safetensors: has " in capsys.readouterr().err


def test_force_overwrites() -> None:
    Path("song.flac").write_text("old")
    assert main([*QUICK, "--quiet"]) == 2
    assert main([*QUICK, "--quiet", "--force"]) == 0
    assert soundfile.info("song.flac").frames == 28800


def test_a_full_disk_is_seen_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 0))
    assert main(QUICK) == 2
    assert "is full: 0.0 MiB free" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_disk_that_fills_while_saving_leaves_nothing(
    tmp_path: Path, forked: Callable[..., Any]
) -> None:
    """The system itself refuses to let any file grow past 64 KiB."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    run = forked(*QUICK, "--duration", "3", "-o", "song.wav", first=limit)
    code, _, said = run.ended()
    assert code == 2
    assert said.count("\n") == 1
    assert "cannot write song.wav" in said
    assert files(tmp_path) == []


def test_interrupt_exits_130_and_leaves_nothing(tmp_path: Path, forked: Callable[..., Any]) -> None:
    run = forked("generate", "x", "--steps", "1000", "--duration", "60", first=os.setsid)
    assert "toy" in run.said(lines=1)
    time.sleep(1)
    os.killpg(run.process.pid, signal.SIGINT)
    code, _, said = run.ended()
    assert code == 130
    assert said.splitlines()[-1] == "acestep: interrupted"
    assert files(tmp_path) == []


def test_an_interrupt_that_a_library_swallows_is_raised_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "_INSIST_SECONDS", 0.05)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    with pytest.raises(KeyboardInterrupt), console.insistent_interrupts():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        time.sleep(5)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_an_interrupt_inside_an_exec_still_exits_130(tmp_path: Path) -> None:
    """CPython would end a module by the signal itself."""
    (tmp_path / "program.py").write_text(
        "import sys\n"
        "from acestep import acestep_v15_pipeline\n"
        "from acestep.cli import devices\n"
        "text = 'import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)'\n"
        "devices.run = lambda _: exec(text)\n"
        "sys.exit(acestep_v15_pipeline.main(['devices']))\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "program"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (130, "acestep: interrupted\n")


def test_a_failure_while_running_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a kernel\nfailed")

    monkeypatch.setattr("acestep.engines.torch.codec.decode", broken)
    assert main(QUICK) == 1
    assert (
        capsys.readouterr().err == "acestep: error: RuntimeError: a kernel failed (see --debug)\n"
    )
    assert main(["--debug", *QUICK]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    table = capsys.readouterr().out
    assert "auto picks cpu" in table or "auto picks cuda" in table or "auto picks mps" in table
    assert main(["devices", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = {entry["name"]: entry for entry in report["devices"]}
    assert set(names) == {"cuda", "mps", "cpu"}
    cpu = names["cpu"]
    assert cpu["available"]
    assert cpu["tier"] == "host"
    assert cpu["lm_backend"] == "pt"
    assert set(cpu["dtypes"]) == {"dit", "text_encoder", "vae", "lm"}
    assert names[report["auto"].partition(":")[0]]["available"]


def test_download_offline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "turbo", "--to", "here"]) == 2
    assert "cannot reach the Hugging Face Hub" in capsys.readouterr().err
    assert main(["download", "nonsense"]) == 2
    assert "acestep-5Hz-lm-0.6B" in capsys.readouterr().err
    assert main(["download", "acestep-5Hz-lm-0.6B", "--to", "here"]) == 2
    assert "Hub for 'ACE-Step/acestep-5Hz-lm-0.6B'" in capsys.readouterr().err
    assert main(["download", "acestep-5Hz-lm-0.6B", "--layout", "original"]) == 2


def test_the_bare_command_checks_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "mps"]) == 2
    assert "'mps' is not available here" in capsys.readouterr().err
    assert main(["--device", "cpu", "--backend", "vllm"]) == 2
    assert "the backend 'vllm' cannot be used on cpu" in capsys.readouterr().err


def test_public_options_of_the_bare_command() -> None:
    parsed = build_parser().parse_args([])
    assert (parsed.port, parsed.server_name, parsed.device) == (7860, "127.0.0.1", "auto")
    for name in (
        "share debug language service_mode init_service checkpoint config_path init_llm "
        "lm_model_path backend use_flash_attention offload_to_cpu offload_dit_to_cpu enable_api "
        "auth_username auth_password api_key"
    ).split():
        assert hasattr(parsed, name), name
    assert resolve_options(parsed)[1] in ("pt", "vllm")
    switched = build_parser().parse_args(["--init_service", "true", "--offload_to_cpu", "no"])
    assert switched.init_service is True
    assert switched.offload_to_cpu is False
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--init_llm", "perhaps"])


def test_backend_by_device() -> None:
    parsed = build_parser().parse_args(["--device", "cpu"])
    assert resolve_options(parsed)[1] == "pt"
    parsed.backend = "vllm"
    with pytest.raises(RequestError, match="vLLM runs on CUDA only"):
        resolve_options(parsed)


def test_device_choices_are_listed_and_indices_are_taken() -> None:
    (action,) = [a for a in build_parser()._actions if "--device" in a.option_strings]
    assert tuple(action.choices or ()) == DEVICE_CHOICES
    assert build_parser().parse_args(["--device", "CUDA:1"]).device == "cuda:1"
    inherited = build_parser().parse_args(["--device", "mps", "generate", "x"])
    assert inherited.device == "mps"


def test_help_needs_no_torch_and_names_every_device() -> None:
    program = (
        "import sys\nfrom acestep.acestep_v15_pipeline import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'diffusers', 'gradio'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "{auto,cuda,mps,cpu}" in run.stdout


def test_module_and_version() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "acestep", "--version"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, f"acestep {__version__}\n")
