"""On a machine with several GPUs: each does what the first does, alone or beside the others."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep.bench.lm_benchmark import SyntheticTokenizer, make_model
from acestep.device import resolve
from acestep.handler import AceStepHandler
from acestep.lm.backend import CodeJob
from acestep.lm.demo import LmShape
from acestep.lm.prompts import Prompt
from acestep.lm.pt import PtBackend
from acestep.lm.sampling import Sampling

_GPUS = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
pytestmark = pytest.mark.skipif(len(_GPUS) < 2, reason="this machine has no two GPUs")

_SHAPE = LmShape(512, 2, 8, 4, 64, 1024, tied=True)
"""The smallest that kernels of our own compute."""
_JOB = CodeJob([Prompt([*range(3, 99)], [*range(5, 55)])], [7], Sampling(0.85, None, 0.9), [40])


def codes(device: str) -> list[list[int]]:
    """Codes of a model with random weights, made and run there."""
    policy = resolve(device)
    model, tokens = make_model(_SHAPE, 65_000, policy)
    backend = PtBackend.of(model, SyntheticTokenizer(tokens).whole(), tokens, policy)
    return backend.codes(_JOB, lambda done, of: None)


def song(device: str) -> torch.Tensor:
    """The built-in checkpoint's, loaded and made there."""
    handler = AceStepHandler()
    handler.load("demo", resolve(device))
    made = handler.generate_music("harp", audio_duration=5, seed=3, use_random_seed=False)
    assert made["success"], made["error"]
    audio: torch.Tensor = made["audios"][0]["tensor"]
    return audio


def together(work: Any) -> dict[str, Any]:
    """What a piece of work gives on each GPU, all at a time."""
    given: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda name=name: given.update({name: work(name)}))
        for name in _GPUS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return given


def test_all_plan_the_same_codes() -> None:
    expected = codes(_GPUS[0])
    assert codes(_GPUS[1]) == expected
    assert together(codes) == dict.fromkeys(_GPUS, expected)


def test_all_make_the_same_song() -> None:
    expected = song(_GPUS[0])
    assert torch.equal(song(_GPUS[1]), expected)
    for name, audio in together(song).items():
        assert torch.equal(audio, expected), name


def test_another_gpu_is_left_alone(tmp_path: Path) -> None:
    """Half a gigabyte of it would be gone, which somebody else may need."""
    program = (
        "import sys, torch\n"
        "from acestep.acestep_v15_pipeline import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "started = [torch._C._cuda_hasPrimaryContext(n) for n in range(2)]\n"
        "sys.exit(str(started) if started != [False, True] else 0)\n"
    )
    command = ["generate", "harp", "--think", "--duration", "5", "--device", _GPUS[1], "-q"]
    command += ["--model", "demo", "--lm-model", "demo", "-o", str(tmp_path / "song.wav")]
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
