"""Fixtures for the runtime's tests: loaded handlers and songs to work from."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep import acestep_v15_pipeline
from acestep.checkpoint.finding import find
from acestep.device import DevicePolicy, resolve
from acestep.handler import AceStepHandler


@pytest.fixture(scope="session")
def policy() -> DevicePolicy:
    """The CPU in float32."""
    return resolve("cpu")


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The built-in checkpoint in diffusers layout, narrow as tests have it."""
    return find("demo").path


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that is not distilled: six tasks, guidance."""
    from acestep.demo.recipe import DemoShape, build

    folder = tmp_path_factory.mktemp("base") / "acestep-v15-base-tiny"
    shape = DemoShape(
        is_turbo=False, latent=4, hidden=64, layers=2, text_hidden=64, decoder_channels=8
    )
    build(folder, shape, seed=3)
    return folder


@pytest.fixture(scope="session")
def handler() -> AceStepHandler:
    """A handler with the built-in checkpoint on the CPU, narrow as tests have it."""
    made = AceStepHandler()
    message, ok = made.initialize_service(None, "demo", "cpu")
    assert ok, message
    return made


@pytest.fixture(scope="session")
def trained_handler(trained: Path) -> AceStepHandler:
    """A handler with the built-in checkpoint as it ships, on the CPU."""
    made = AceStepHandler()
    made.load(str(trained), resolve("cpu"))
    return made


@pytest.fixture(scope="session")
def base_handler(base_folder: Path) -> AceStepHandler:
    """A handler with the undistilled checkpoint on the CPU."""
    made = AceStepHandler()
    message, ok = made.initialize_service(None, str(base_folder), "cpu")
    assert ok, message
    return made


@pytest.fixture(scope="session")
def diffusers_pipeline(demo_folder: Path) -> Any:
    """diffusers' own pipeline over the built-in checkpoint."""
    from diffusers import AceStepPipeline

    pipeline = AceStepPipeline.from_pretrained(demo_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def base_pipeline(base_folder: Path) -> Any:
    """diffusers' own pipeline over the undistilled checkpoint."""
    from diffusers import AceStepPipeline

    pipeline = AceStepPipeline.from_pretrained(base_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def song() -> torch.Tensor:
    """Two seconds of a stereo chord, `[2, 96000]` at 48 kHz."""
    time = torch.arange(96000) / 48000
    left = sum(torch.sin(2 * torch.pi * f * time) for f in (220.0, 277.2, 329.6)) / 6
    right = sum(torch.sin(2 * torch.pi * f * time + 0.5) for f in (220.0, 440.0)) / 5
    return torch.stack([left, right])


@pytest.fixture
def song_file(song: torch.Tensor, tmp_path: Path) -> Path:
    """The chord as a 16-bit file at 44.1 kHz."""
    import soundfile

    path = tmp_path / "chord.wav"
    soundfile.write(path, song.T.numpy(), 48000)
    return path


class Forked:
    """The command line in a copy of this process: what it does, without the imports' seconds.

    Its output goes to files beside the test's own.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], first: Callable[[], object]) -> None:
        self._printed, self._said = folder / "printed", folder / "said"
        copy = multiprocessing.get_context("fork").Process(
            target=self._run, args=(arguments, first)
        )
        copy.start()
        self.process = copy

    def _run(self, arguments: Sequence[str], first: Callable[[], object]) -> None:
        sys.settrace(None)
        for number, name, path in ((1, "stdout", self._printed), (2, "stderr", self._said)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
        # A run that was started in the background ignores interrupts, and so would this one.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        first()
        sys.exit(acestep_v15_pipeline.main(list(arguments)))

    def said(self, lines: int = 0, within: float = 60.0) -> str:
        """What stands on its standard error, once there are so many lines."""
        end = time.monotonic() + within
        while True:
            text = self._said.read_text(encoding="utf-8") if self._said.exists() else ""
            if text.count("\n") >= lines:
                return text
            assert self.process.is_alive(), text
            assert time.monotonic() < end, text
            time.sleep(0.02)

    def ended(self, within: float = 60.0) -> tuple[int | None, str, str]:
        """Its exit code, standard output and standard error."""
        self.process.join(within)
        return self.process.exitcode, self._printed.read_text(encoding="utf-8"), self.said()


@pytest.fixture
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Forked]]:
    """Starts the command line in a copy of this process; `first` runs there before it."""
    started: list[Forked] = []

    def start(*arguments: str, first: Callable[[], object] = lambda: None) -> Forked:
        started.append(Forked(tmp_path_factory.mktemp("forked"), arguments, first))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., Any]:
    """Makes a thin VAE with random weights: its ratios, and its widths where they matter."""

    def make(
        ratios: list[int],
        latent: int = 4,
        width: int = 4,
        multiples: Sequence[int] = (1, 2, 2, 3, 4),
    ) -> Any:
        from diffusers.models import AutoencoderOobleck

        from acestep.corrections.weight_norm import old_weight_norm
        from acestep.demo.recipe import seed_weights

        with old_weight_norm():
            vae = AutoencoderOobleck(
                encoder_hidden_size=2 * latent,
                downsampling_ratios=ratios,
                channel_multiples=list(multiples[: len(ratios)]),
                decoder_channels=width,
                decoder_input_channels=latent,
                audio_channels=2,
                sampling_rate=48000,
            )
        seed_weights(vae, 11, "test-vae")
        return vae.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="module")
def own_kernels() -> Iterator[bool]:
    """The project's own kernels as this machine can run them; True if by its GPU.

    Elsewhere Triton's interpreter runs them on the host.
    """
    pytest.importorskip("triton", reason="there is no Triton for this system")
    kinds = ("wave", "step", "language", "choice")
    names = [f"acestep.engines.torch._{kind}_kernels" for kind in kinds]
    on_gpu = resolve().has_tile_kernels(torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        if not on_gpu:
            patch.setenv("TRITON_INTERPRET", "1")
        for name in names:
            sys.modules.pop(name, None)
            importlib.import_module(name)
    yield on_gpu
    # Nobody else is to meet interpreted kernels.
    for name in names:
        sys.modules.pop(name, None)
