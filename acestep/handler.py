"""`AceStepHandler`: what is loaded, where it lies, and one request turned into songs."""

from __future__ import annotations

import gc
import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from acestep.alignment.service import LyricAlignmentMixin
from acestep.checkpoint import finding, folders
from acestep.checkpoint.adapters.applying import AdapterMixin
from acestep.checkpoint.kinds import Checkpoint, tasks_of
from acestep.device import DevicePolicy, canonical, resolve
from acestep.diffusion.pipeline import Denoised, Pipeline
from acestep.engines.torch.loading import load_pipeline
from acestep.errors import AceStepError, GenerationError, RequestError
from acestep.gpu_config import GPUConfig, get_gpu_config
from acestep.song.generation import (
    Clock,
    Generation,
    Progress,
    Report,
    Song,
    check_latents,
    extra_outputs,
    latent_frames,
    lyric_tokens,
    normalized,
    out_of_memory,
    pipeline_arguments,
)
from acestep.song.params import GenerationConfig, GenerationParams, make_request
from acestep.song.request import Request
from acestep.vae import decode

# Share of the progress bar at which the diffusion starts and ends.
_DIFFUSION = (0.05, 0.8)


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
        self.pipeline: Pipeline | None = None
        self.lm_initialized = False
        self.offload = "none"
        self._project_root: str | None = None
        self._lock = threading.RLock()
        self._cancel = threading.Event()
        self._send_home: Callable[[], None] = lambda: None

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
        return tasks_of(self.pipeline.is_turbo) if self.pipeline else ()

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
            quantization: not available; anything but None is refused.
            dtype: one precision for every component, see `device.DTYPE_CHOICES`.
            progress: told what is being loaded.

        Returns:
            (message, ok); on failure the message says what to do.
        """
        offload = "all" if offload_to_cpu else "dit" if offload_dit_to_cpu else "none"
        try:
            self.load(
                config_path,
                resolve(device, dtype=dtype),
                project_root=project_root,
                use_flash_attention=use_flash_attention,
                compile_model=compile_model,
                offload=offload,
                quantization=quantization,
                progress=progress,
            )
        except AceStepError as error:
            return str(error), False
        except torch.OutOfMemoryError as error:
            return out_of_memory(self.policy, error), False
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
        quantization: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """What `initialize_service` does, for callers that want the error raised.

        Args:
            offload: `none`, `dit` or `all`.

        Raises:
            RequestError: an option that this device or installation does not have.
            CheckpointError: see `finding.find` and `loading.load`.
        """
        _check_options(policy, use_flash_attention, offload, quantization)
        with self._lock:
            checkpoint = finding.find(model, project_root)

            def on_component(name: str) -> None:
                if progress is not None:
                    progress(0.0, desc=f"loading {name.replace('_', ' ')}")

            # With offloading, weights go to the host first and visit the device in turn.
            home = resolve("cpu") if offload == "all" else policy
            pipeline = load_pipeline(checkpoint, _placed(policy, home), on_component)
            pipeline.set_progress_bar_config(disable=True)
            if use_flash_attention:
                pipeline.transformer.set_attention_backend("flash")
            if compile_model:
                pipeline.compiles = True
            send_home = _offload(pipeline, policy, offload)
            self.unload()
            self.pipeline, self.policy, self.checkpoint = pipeline, policy, checkpoint
            self.offload, self._project_root = offload, project_root
            self._send_home = send_home

    def unload(self) -> None:
        """Drop the loaded checkpoint and give its memory back."""
        with self._lock:
            if self.pipeline is not None:
                self.pipeline.remove_all_hooks()
                self.pipeline = None
                self.checkpoint = None
                gc.collect()
                self.policy.flush()

    def status(self) -> str:
        """One line: what is loaded where."""
        if self.checkpoint is None:
            return "no checkpoint is loaded"
        dtypes = ", ".join(f"{name} {c.name}" for name, c in self.policy.dtypes.items())
        offloaded = {"none": "", "dit": ", DiT offloaded", "all": ", offloaded"}[self.offload]
        return f"{self.checkpoint.name} on {self.device} ({dtypes}){offloaded}"

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
        return _flash_attention_problem(self.policy) is None

    def cancel(self) -> None:
        """Stop the generation that is running, after its current step."""
        self._cancel.set()

    def generate_music(
        self,
        captions: str,
        lyrics: str = "",
        bpm: int | None = None,
        key_scale: str = "",
        time_signature: str = "",
        vocal_language: str = "unknown",
        inference_steps: int = 8,
        guidance_scale: float = 7.0,
        use_random_seed: bool = True,
        seed: int | Sequence[int] = -1,
        reference_audio: str | Path | torch.Tensor | None = None,
        audio_duration: float = -1,
        batch_size: int = 1,
        src_audio: str | Path | torch.Tensor | None = None,
        audio_code_string: str = "",
        repainting_start: float = 0.0,
        repainting_end: float | None = None,
        instruction: str | None = None,
        audio_cover_strength: float = 1.0,
        task_type: str = "text2music",
        use_adg: bool = False,
        cfg_interval_start: float = 0.0,
        cfg_interval_end: float = 1.0,
        shift: float = 1.0,
        infer_method: str = "ode",
        timesteps: Sequence[float] | None = None,
        track_name: str | None = None,
        complete_track_classes: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Generate a batch of songs.

        The arguments are those of `inference.GenerationParams`, under the names that the
        handler's callers know.

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
            repainting_end=-1 if repainting_end is None else repainting_end,
            audio_cover_strength=audio_cover_strength,
            track_name=track_name,
            complete_track_classes=complete_track_classes,
        )
        seeds = [seed] if isinstance(seed, int) else list(seed)
        config = GenerationConfig(
            batch_size=batch_size, use_random_seed=use_random_seed, seeds=seeds
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
            if self.pipeline is None:
                raise RequestError("no checkpoint is loaded; call initialize_service first")
            request = request.validated(self.tasks, self.pipeline.sample_rate)
            request, warnings = request.limited(self.gpu_config, self.lm_initialized)
            self._cancel.clear()
            report = Report(progress, self._cancel)
            try:
                with self.policy.full_precision():
                    return self._generate(self.pipeline, request, warnings, report)
            except torch.OutOfMemoryError as error:
                raise GenerationError(out_of_memory(self.policy, error)) from None
            finally:
                self._send_home()
                self.pipeline.maybe_free_model_hooks()
                self.policy.after_request()

    def _generate(
        self, pipeline: Pipeline, request: Request, warnings: list[str], report: Report
    ) -> Generation:
        policy, clock = self.policy, Clock(self.policy)
        policy.reset_peak_memory()
        report(0.0, "reading the prompt")
        with clock("diffusion"), torch.inference_mode():
            denoised = self._denoise(pipeline, request, report)
            self._send_home()
            check_latents(denoised.latents, policy)
        with clock("decoding"), torch.inference_mode():
            report(_DIFFUSION[1], "decoding")
            audio = decode.decode(
                pipeline.vae,
                denoised.latents.transpose(1, 2),
                policy,
                compiled=pipeline.compiles,
                on_chunk=lambda done: report.part(_DIFFUSION[1], 1.0, done, "decoding"),
            )
            audio = normalized(audio)
        songs = [
            Song(item, pipeline.sample_rate, seed)
            for item, seed in zip(audio, request.seeds, strict=True)
        ]
        tensors = {"latents": denoised.latents, **denoised.condition}
        return Generation(
            songs=songs,
            request=request,
            warnings=warnings,
            tensors={name: t.to("cpu", torch.float32) for name, t in tensors.items()},
            lyric_token_ids=lyric_tokens(pipeline, request),
            times=clock.seconds,
            peak_memory=policy.peak_memory(),
        )

    def _denoise(self, pipeline: Pipeline, request: Request, report: Report) -> Denoised:
        low, high = _DIFFUSION

        def on_step(done: int, steps: int) -> None:
            report.part(low, high, done / steps, f"step {done}/{steps}")

        return pipeline.denoise(
            self.policy,
            pipeline_arguments(pipeline, request),
            request.seeds,
            latent_frames(pipeline, request),
            on_step,
            stochastic=request.infer_method == "sde",
        )

    def _is_on_target_device(
        self, tensor: torch.Tensor | None, target_device: str | torch.device
    ) -> bool:
        """Whether a tensor lies on a device; a missing index means the current device.

        Raises:
            DeviceError: the target is not a device.
        """
        wanted = canonical(target_device)
        return tensor is not None and canonical(tensor.device) == wanted


def _placed(policy: DevicePolicy, home: DevicePolicy) -> DevicePolicy:
    """The policy with its dtypes kept and its tensors placed on another device."""
    import dataclasses

    return dataclasses.replace(policy, device=home.device)


def _offload(pipeline: Pipeline, policy: DevicePolicy, offload: str) -> Callable[[], None]:
    """Arrange offloading; returns what brings the transformer home after the diffusion."""
    if offload == "all":
        # Each module that is called sends the one before it home.
        pipeline.enable_model_cpu_offload(device=policy.device)
        return pipeline.forget
    if offload == "dit":
        from accelerate import cpu_offload_with_hook

        _, hook = cpu_offload_with_hook(pipeline.transformer, policy.device)
        hook.offload()

        def send_home() -> None:
            pipeline.forget()
            hook.offload()

        return send_home
    return lambda: None


def _check_options(
    policy: DevicePolicy, use_flash_attention: bool, offload: str, quantization: str | None
) -> None:
    if quantization is not None:
        raise RequestError(
            f"quantization '{quantization}' is not available; leave it out, and use offloading "
            "where memory is short"
        )
    if offload != "none" and policy.unified_memory:
        raise RequestError(
            f"offloading is pointless on {policy.name}: the host and the device share their "
            "memory; leave it out"
        )
    if use_flash_attention and (problem := _flash_attention_problem(policy)):
        raise RequestError(f"flash attention is not available: {problem}; leave it out")


def _flash_attention_problem(policy: DevicePolicy) -> str | None:
    if not policy.has_flash_attention:
        return f"it does not run on {policy.name}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    return None
