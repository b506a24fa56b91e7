"""One device's share of a batch: a loaded handler that turns jobs into songs."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.batch.jobs import Job, Made
from acestep.errors import AceStepError, first_line
from acestep.gpu_config import check_ahead

if TYPE_CHECKING:
    from acestep.llm_inference import LLMHandler
    from acestep.song.outcome import Song
    from acestep.song.params import GenerationConfig


_OF_PLANNING = ("thinking", "lm_", "use_cot_", "use_constrained_")


@dataclass(frozen=True)
class Setting:
    """What every worker of a batch loads.

    Attributes:
        model: as for `finding.find`.
        checkpoints: a folder whose `checkpoints` is searched first, or None.
        dtype: one of `device.DTYPE_CHOICES`.
        compiled: compile on first use.
        audio_format: extension of the songs.
        bit_depth, bitrate, loudness, fit: as in `GenerationConfig`; None leaves them open.
        quantization: in how few bits weights are held, see `DevicePolicy.with_quantization`.
        engine: what computes, one of `device.ENGINE_CHOICES`.
        planner: the language model that plans lines which ask for it, see `lm.models.find`; None
            loads none.
        backend: its engine, or None for the device's own.
        ahead: plan a song while the one before it is made.
    """

    model: str = "auto"
    checkpoints: str | None = None
    dtype: str = "auto"
    compiled: bool = False
    audio_format: str = "flac"
    bit_depth: int | None = None
    bitrate: int | None = None
    loudness: float | None = None
    fit: bool = False
    quantization: str | None = None
    engine: str = "auto"
    planner: str | None = None
    backend: str | None = None
    ahead: bool = False

    def config(self, seed: int) -> GenerationConfig:
        """How one song is made and written."""
        from acestep.song.params import GenerationConfig

        return GenerationConfig(
            batch_size=1,
            seeds=[seed],
            use_random_seed=False,
            audio_format=self.audio_format,
            audio_bit_depth=self.bit_depth,
            audio_bitrate=self.bitrate,
            audio_loudness=self.loudness,
            fit=self.fit,
        )


@dataclass(frozen=True)
class Computed:
    """A song that is no file yet, what is recorded of it, and when its work began."""

    song: Song
    record: dict[str, Any]
    start: float


def unplanned(job: Job) -> list[str]:
    """A line for what only a language model would heed, where a batch loads none."""
    wanted = [name for name, value in job.params.items() if name.startswith(_OF_PLANNING) and value]
    if not wanted:
        return []
    names = ", ".join(wanted)
    return [f"left out, for the batch loads no language model (--think does): {names}"]


class Worker:
    """Loads the checkpoint once and makes one song at a time; its calls may come from several
    threads: then one is planned while another is made, and a third encoded.

    Args:
        device: as for `device.resolve`.
        setting: what to load.
        threads: of the host to compute with, or None for PyTorch's own number.
    """

    def __init__(self, device: str, setting: Setting, threads: int | None = None) -> None:
        import torch

        from acestep.console.terminal import quiet_libraries
        from acestep.device import resolve
        from acestep.handler import AceStepHandler

        if threads:
            torch.set_num_threads(threads)
        quiet_libraries()
        self._setting = setting
        self._handler = AceStepHandler()
        policy = resolve(
            device,
            dtype=setting.dtype,
            quantization=setting.quantization,
            engine=setting.engine,
        )
        # Before anything is loaded: it takes a minute with a real checkpoint.
        if setting.ahead:
            check_ahead(policy)
        self._handler.load(
            setting.model,
            policy,
            project_root=setting.checkpoints,
            compile_model=setting.compiled,
        )
        self._planner = self._loaded_planner()

    def _loaded_planner(self) -> LLMHandler | None:
        """The language model, beside the music's models."""
        setting, policy = self._setting, self._handler.policy
        if setting.planner is None:
            return None
        from acestep.llm_inference import LLMHandler
        from acestep.lm.pt import PtBackend

        planner = LLMHandler()
        planner.load(
            setting.planner,
            policy,
            checkpoint_dir=setting.checkpoints,
            backend=setting.backend,
            compile_model=setting.compiled,
        )
        if setting.ahead and isinstance(planner.backend, PtBackend):
            planner.backend.beside = True
        return planner

    def cancel(self) -> None:
        """Stop what runs, after its current step."""
        self._handler.cancel()
        if self._planner is not None:
            self._planner.cancel()

    def make(self, job: Job) -> Made | str:
        """The song, or why there is none. Two calls overlap: one encodes while one computes."""
        computed = self.compute(job)
        return computed if isinstance(computed, str) else self.encode(computed)

    def compute(self, job: Job) -> Computed | str:
        """The song's samples, or why there are none."""
        from acestep.inference import describe, run
        from acestep.song.params import GenerationParams

        start = time.perf_counter()
        try:
            params = GenerationParams.of(job.params)
            config = self._setting.config(job.params["seed"])
            made = run(self._handler, params, config, llm_handler=self._planner)
            if self._planner is None:
                made = replace(made, warnings=[*unplanned(job), *made.warnings])
        except (AceStepError, TypeError, ValueError) as error:
            return first_line(error)
        return Computed(made.songs[0], describe(self._handler, made, 0), start)

    def encode(self, computed: Computed) -> Made | str:
        """The samples as a file's bytes, or why there are none; any thread may do it."""
        from acestep.song import audio_files, tags

        song = computed.song
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"song.{self._setting.audio_format}"
                how = self._setting.config(song.seed).encoding()
                known = tags.of_record(computed.record)
                audio_files.encode(path, song.audio, song.sample_rate, how, known)
                audio = path.read_bytes()
        except (AceStepError, OSError, ValueError) as error:
            return first_line(error)
        return Made(audio, computed.record, time.perf_counter() - computed.start)
