"""`AceStepHandler`: what is loaded, where it lies, and one request turned into songs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from acestep.alignment.service import LyricAlignmentMixin
from acestep.checkpoint import finding, folders
from acestep.checkpoint.adapters.applying import AdapterMixin
from acestep.checkpoint.kinds import Checkpoint, stored_in, tasks_of
from acestep.device import DevicePolicy, canonical, resolve
from acestep.diffusion.making import Maker
from acestep.engines.loading import Options, flash_attention_problem, load_engine
from acestep.engines.protocol import Engine
from acestep.errors import AceStepError, RequestError
from acestep.gpu_config import GPUConfig, get_gpu_config
from acestep.song.defaults import TABLE, Defaults, kind_of
from acestep.song.outcome import Generation, extra_outputs
from acestep.song.params import GenerationConfig, GenerationParams, make_request
from acestep.song.progress import Progress, Report
from acestep.song.request import Request


class AceStepHandler(LyricAlignmentMixin, AdapterMixin):
    """Loads a checkpoint onto one device and generates music with it.

    Safe to share between threads: one generation runs at a time, others wait.

    Attributes:
        device: name of the device in use, `cpu` until a checkpoint is loaded.
        dtype: dtype of the diffusion transformer.
    """

    def __init__(self) -> None:
        self.policy: DevicePolicy = resolve("cpu")
        self.checkpoint: Checkpoint | None = None
        self.engine: Engine | None = None
        self.lm_initialized = False
        self.offload = "none"
        self._project_root: str | None = None
        self._lock = threading.RLock()
        self._cancel = threading.Event()
        self.maker: Maker | None = None

    @property
    def pipeline(self) -> Any:
        """The loaded modules as a diffusers pipeline, where the engine has one; else None."""
        return getattr(self.engine, "pipeline", None)

    @property
    def device(self) -> str:
        """The device in use, for example `mps` or `cuda:0`."""
        return self.policy.name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the diffusion transformer."""
        return self.policy.dtype

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the loaded checkpoint can do; empty when none is loaded."""
        return tasks_of(self.engine.traits.is_turbo) if self.engine else ()

    @property
    def defaults(self) -> Defaults:
        """Steps, shift and guidance of the loaded checkpoint.

        Raises:
            RequestError: none is loaded.
        """
        if self.engine is None or self.checkpoint is None:
            raise RequestError("no checkpoint is loaded; call initialize_service first")
        found, traits = self.checkpoint, self.engine.traits
        return TABLE[kind_of(found.name, traits.is_turbo, traits.version, found.builtin)]

    @property
    def gpu_config(self) -> GPUConfig:
        """The limits of this device's memory tier."""
        return get_gpu_config(policy=self.policy)

    def initialize_service(
        self,
        project_root: str | None = None,
        config_path: str = "auto",
        device: str = "auto",
        use_flash_attention: bool = False,
        compile_model: bool = False,
        offload_to_cpu: bool = False,
        offload_dit_to_cpu: bool = False,
        quantization: str | None = None,
        *,
        dtype: str | None = None,
        progress: Progress | None = None,
        engine: str | None = None,
    ) -> tuple[str, bool]:
        """Load a checkpoint; on failure the handler stays as it was.

        Args:
            project_root: a folder whose `checkpoints` is searched first.
            config_path: which checkpoint, see `finding.find`.
            device: see `device.resolve`; used or refused, never replaced.
            use_flash_attention: attention through the flash-attn package (CUDA).
            compile_model: compile the transformer's layers and the VAE's decoder on first use;
                it takes about a minute, and every song after that is quicker.
            offload_to_cpu: keep modules on the host while they are idle.
            offload_dit_to_cpu: keep only the diffusion transformer there.
            quantization: hold the transformers' weights in few bits: `int8_weight_only`,
                `fp8_weight_only`, `w8a8_dynamic`, or one of `device.QUANTIZATIONS`.
            dtype: one precision for every component, see `device.DTYPE_CHOICES`.
            progress: told what is being loaded.
            engine: what computes, `torch` or `mlx`: used or refused, never replaced; None or
                `auto` is MLX on Apple silicon where it is installed, see `device.ENGINE_CHOICES`.

        Returns:
            (message, ok); on failure the message says what to do.
        """
        offload = "all" if offload_to_cpu else "dit" if offload_dit_to_cpu else "none"
        try:
            self.load(
                config_path,
                resolve(device, dtype=dtype, quantization=quantization, engine=engine),
                project_root=project_root,
                use_flash_attention=use_flash_attention,
                compile_model=compile_model,
                offload=offload,
                progress=progress,
            )
        except AceStepError as error:
            return str(error), False
        return self.status(), True

    def load(
        self,
        model: str,
        policy: DevicePolicy,
        *,
        project_root: str | None = None,
        use_flash_attention: bool = False,
        compile_model: bool = False,
        offload: str = "none",
        progress: Progress | None = None,
    ) -> None:
        """What `initialize_service` does, for callers that want the error raised.

        Args:
            offload: `none`, `dit` or `all`.

        Raises:
            RequestError: an option that this device or installation does not have.
            CheckpointError: see `finding.find` and `loading.load`.
        """
        options = Options(use_flash_attention, compile_model, offload)
        options.check(policy)
        with self._lock:
            checkpoint = finding.find(model, project_root)
            if checkpoint.held is not None:
                policy = checkpoint.held.agreed(checkpoint.name, policy)
            policy = policy.for_weights(stored_in(checkpoint))

            def on_component(name: str) -> None:
                if progress is not None:
                    progress(0.0, desc=f"loading {name.replace('_', ' ')}")

            engine = load_engine(checkpoint, policy, options, on_component)
            self.adopt(engine, policy, checkpoint)
            self.offload, self._project_root = offload, project_root

    def adopt(self, engine: Engine, policy: DevicePolicy, checkpoint: Checkpoint) -> None:
        """Make music with an engine from now on, in place of the one there."""
        with self._lock:
            self.unload()
            self.engine, self.policy, self.checkpoint = engine, policy, checkpoint
            self.maker = Maker(engine, policy)

    def unload(self) -> None:
        """Drop the loaded checkpoint and give its memory back."""
        with self._lock:
            if self.engine is not None:
                engine, self.maker = self.engine, None
                self.engine = self.checkpoint = None
                engine.close()

    def status(self) -> str:
        """One line: what is loaded where."""
        if self.checkpoint is None:
            return "no checkpoint is loaded"
        dtypes = ", ".join(f"{name} {c.name}" for name, c in self.policy.dtypes.items())
        offloaded = {"none": "", "dit": ", DiT offloaded", "all": ", offloaded"}[self.offload]
        held = f", {self.policy.quantization} weights" if self.policy.quantization else ""
        through = f", {self.policy.engine_name}" if self.policy.on_mlx else ""
        return f"{self.checkpoint.name} on {self.device} ({dtypes}{held}{through}){offloaded}"

    def get_available_checkpoints(self) -> list[str]:
        """The folders searched for checkpoints that exist."""
        roots = folders.checkpoint_roots(self._project_root)
        return [str(root) for root in roots if root.is_dir()]

    def get_available_acestep_v15_models(self) -> list[str]:
        """Names of the checkpoints on this machine, the built-in `demo` last."""
        found = finding.local_checkpoints(self._project_root)
        return [*dict.fromkeys(checkpoint.name for checkpoint in found), "demo"]

    def is_flash_attention_available(self) -> bool:
        """Whether the flash-attn package is installed and the device can run it."""
        return flash_attention_problem(self.policy) is None

    def cancel(self) -> None:
        """Stop the generation that is running, after its current step."""
        self._cancel.set()

    def generate_music(
        self,
        captions: str,
        lyrics: str = "",
        bpm: float | str | None = None,
        key_scale: str | None = "",
        time_signature: str | int | None = "",
        vocal_language: str = "unknown",
        inference_steps: int | str | None = None,
        guidance_scale: float | str | None = None,
        use_random_seed: bool = True,
        seed: int | str | Sequence[int] = -1,
        reference_audio: str | Path | torch.Tensor | None = None,
        audio_duration: float | str | None = -1,
        batch_size: int = 1,
        src_audio: str | Path | torch.Tensor | None = None,
        audio_code_string: str | Sequence[str] = "",
        repainting_start: float = 0.0,
        repainting_end: float | None = None,
        instruction: str | None = None,
        audio_cover_strength: float = 1.0,
        task_type: str = "text2music",
        use_adg: bool = False,
        cfg_interval_start: float = 0.0,
        cfg_interval_end: float = 1.0,
        shift: float | str | None = None,
        infer_method: str = "ode",
        timesteps: Sequence[float] | str | None = None,
        track_name: str | None = None,
        complete_track_classes: Sequence[str] = (),
        repaint_mode: str = "balanced",
        repaint_strength: float = 0.5,
        repaint_latent_crossfade_frames: int | None = None,
        repaint_wav_crossfade_sec: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Generate a batch of songs.

        The arguments are those of `inference.GenerationParams`, under the names that the
        handler's callers know; steps, guidance and shift are the checkpoint's own unless given.

        Returns:
            dict with `success`, `error` (a line, or None), `status_message`, `audios` (a list
            of dicts with `tensor` `[2, samples]`, `sample_rate` and `seed`) and
            `extra_outputs` (latents, condition, lyric tokens, times, warnings).
        """
        params = GenerationParams(
            task_type=task_type,
            instruction=instruction,
            reference_audio=reference_audio,
            src_audio=src_audio,
            audio_codes=audio_code_string,
            caption=captions,
            lyrics=lyrics,
            vocal_language=vocal_language,
            bpm=bpm,
            keyscale=key_scale,
            timesignature=time_signature,
            duration=audio_duration,
            inference_steps=inference_steps,
            guidance_scale=guidance_scale,
            use_adg=use_adg,
            cfg_interval_start=cfg_interval_start,
            cfg_interval_end=cfg_interval_end,
            shift=shift,
            infer_method=infer_method,
            timesteps=timesteps,
            repainting_start=repainting_start,
            repainting_end=repainting_end,
            repaint_mode=repaint_mode,
            repaint_strength=repaint_strength,
            repaint_latent_crossfade_frames=repaint_latent_crossfade_frames,
            repaint_wav_crossfade_sec=repaint_wav_crossfade_sec,
            audio_cover_strength=audio_cover_strength,
            track_name=track_name,
            complete_track_classes=complete_track_classes,
        )
        config = GenerationConfig(
            batch_size=batch_size, use_random_seed=use_random_seed, seeds=seed
        )
        try:
            made = self.generate(make_request(params, config), progress)
        except AceStepError as error:
            return {
                "success": False,
                "error": str(error),
                "status_message": str(error),
                "audios": [],
                "extra_outputs": {},
            }
        return {
            "success": True,
            "error": None,
            "status_message": "; ".join(made.warnings) or "done",
            "audios": [
                {"tensor": song.audio, "sample_rate": song.sample_rate, "seed": song.seed}
                for song in made.songs
            ],
            "extra_outputs": extra_outputs(made),
        }

    def generate(self, request: Request, progress: Progress | None = None) -> Generation:
        """Serve one request; waits while another runs.

        Raises:
            RequestError: the request is not valid for this checkpoint.
            GenerationError: the model's output cannot be used, or memory ran out.
            CancelledError: `cancel` was called meanwhile.
        """
        with self._lock:
            if self.engine is None or self.maker is None:
                raise RequestError("no checkpoint is loaded; call initialize_service first")
            request = request.validated(self.tasks, self.engine.traits.sample_rate)
            request, warnings = request.limited(self.gpu_config, self.lm_initialized)
            request, notices = request.resolved(self.defaults)
            warnings += notices
            self._cancel.clear()
            return self.maker.make(request, warnings, Report(progress, self._cancel))

    def codes_of(self, audio: torch.Tensor) -> list[int]:
        """The audio codes of a song, five a second.

        Args:
            audio: `[2, samples]` at 48 kHz.

        Raises:
            RequestError: no checkpoint is loaded, it has no audio tokenizer, or the audio is
                shorter than a code.
            GenerationError: memory ran out.
        """
        with self._lock:
            if self.engine is None:
                raise RequestError("no checkpoint is loaded; call initialize_service first")
            traits = self.engine.traits
            if not traits.codes:
                raise RequestError("this checkpoint has no audio tokenizer; use another one")
            if audio.shape[-1] < traits.code_frames * traits.frame_samples:
                raise RequestError("the audio is shorter than one code, 0.2 s")
            with self.engine.working():
                return self.engine.codes_of(self.engine.encode(audio))

    def _is_on_target_device(
        self, tensor: torch.Tensor | None, target_device: str | torch.device
    ) -> bool:
        """Whether a tensor lies on a device; a missing index means the current device.

        Raises:
            DeviceError: the target is not a device.
        """
        wanted = canonical(target_device)
        return tensor is not None and canonical(tensor.device) == wanted
