"""`LLMHandler`: the 5 Hz language model, from a caption to metadata and audio codes.

A face: it holds what is loaded, lets one generation run at a time and turns errors into
answers. Loading is in `lm.loading`, planning in `lm.planner`, descriptions in `lm.describing`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from acestep.device import DevicePolicy, resolve
from acestep.errors import AceStepError, CancelledError, RequestError
from acestep.gpu_config import GPUConfig, get_gpu_config
from acestep.lm import cot, describing, loading, models, planner
from acestep.lm.backend import Backend
from acestep.lm.options import WritingOptions, sampling_of
from acestep.lm.prompts import NO_NEGATIVE_PROMPT
from acestep.lm.sampling import Sampling
from acestep.lm.writer import Writer


class LLMHandler:
    """Loads a 5 Hz language model onto one device and plans music with it.

    Safe to share between threads: one generation runs at a time, others wait.

    Attributes:
        device: name of the device in use, `cpu` until a model is loaded.
        dtype: dtype of the model.
        llm_backend: the engine in use, or None.
        caption_lines, line_length, lyric_lines: most free text that a grammar lets through.
    """

    def __init__(self) -> None:
        self.policy: DevicePolicy = resolve("cpu")
        self.backend: Backend | None = None
        self.model_name: str | None = None
        self.caption_lines, self.line_length, self.lyric_lines = 12, 120, 120
        self._checkpoint_dir: str | None = None
        self._lock = threading.RLock()
        self._cancel = threading.Event()

    @property
    def device(self) -> str:
        """The device in use, for example `mps` or `cuda:0`."""
        return self.policy.name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model."""
        return self.policy.dtype_of("lm")

    @property
    def llm_backend(self) -> str | None:
        """The engine in use."""
        return self.backend.name if self.backend else None

    @property
    def llm_initialized(self) -> bool:
        """Whether a model is loaded."""
        return self.backend is not None

    @property
    def gpu_config(self) -> GPUConfig:
        """The limits of this device's memory tier."""
        return get_gpu_config(policy=self.policy)

    def initialize(
        self,
        checkpoint_dir: str | Path | None = None,
        lm_model_path: str | None = None,
        backend: str | None = None,
        device: str = "auto",
        offload_to_cpu: bool = False,
        dtype: str | torch.dtype | None = None,
        *,
        compile_model: bool = False,
        quantization: str | None = None,
        engine: str | None = None,
    ) -> tuple[str, bool]:
        """Load a model; on failure the handler stays as it was.

        Args:
            checkpoint_dir: folder that holds the models, searched first.
            lm_model_path: which model, see `lm.models.find`.
            backend: `pt`, `vllm` or `mlx`; None or `auto` lets the device decide.
            device: see `device.resolve`; used or refused, never replaced.
            offload_to_cpu: keep the model on the host between generations.
            dtype: overrides the policy's precision.
            compile_model: compile the decoding step on first use.
            quantization: hold the weights in few bits, see `AceStepHandler.initialize_service`.
            engine: what computes, see there; it decides the backend that is not named.

        Returns:
            (message, ok); on failure the message says what to do.
        """
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        try:
            return self.load(
                lm_model_path,
                resolve(device, dtype=name, quantization=quantization, engine=engine),
                checkpoint_dir=checkpoint_dir,
                backend=backend,
                offload=offload_to_cpu,
                compile_model=compile_model,
            ), True
        except AceStepError as error:
            return str(error), False
        except torch.OutOfMemoryError:
            self.policy.flush()
            return "the language model does not fit into memory; use a smaller one", False

    def load(
        self,
        model: str | None,
        policy: DevicePolicy,
        *,
        checkpoint_dir: str | Path | None = None,
        backend: str | None = None,
        offload: bool = False,
        compile_model: bool = False,
    ) -> str:
        """What `initialize` does, for callers that want the error raised.

        Returns:
            One line: what is loaded where.

        Raises:
            RequestError: the device or installation lacks what is asked for.
            CheckpointError: see `lm.models.find`.
        """
        choice = loading.find(
            model,
            policy,
            checkpoint_dir=checkpoint_dir,
            backend=backend,
            offload=offload,
            compile_model=compile_model,
        )
        with self._lock:
            loaded = choice.load()
            self.unload()
            self.backend, self.policy, self.model_name = loaded, choice.policy, choice.folder.name
            self._checkpoint_dir = str(checkpoint_dir) if checkpoint_dir else None
        return choice.status

    def adopt(self, backend: Backend, policy: DevicePolicy, name: str) -> None:
        """Plan with an engine from now on, in place of the one there."""
        with self._lock:
            self.unload()
            self.backend, self.policy, self.model_name = backend, policy, name

    def unload(self) -> None:
        """Drop the loaded model and give its memory back."""
        with self._lock:
            if self.backend is not None:
                self.backend.close()
                self.backend = self.model_name = None
                gc.collect()
                self.policy.flush()

    def get_available_5hz_lm_models(self) -> list[str]:
        """Names of the 5 Hz language models on this machine, the built-in `demo` last."""
        return models.available(self._checkpoint_dir)

    def cancel(self) -> None:
        """Stop the generation that is running, after its current token."""
        self._cancel.set()

    def generate_with_stop_condition(
        self,
        caption: str,
        lyrics: str,
        infer_type: str = "llm_dit",
        temperature: float = 0.85,
        cfg_scale: float = 1.0,
        negative_prompt: str = NO_NEGATIVE_PROMPT,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        use_constrained_decoding: bool = True,
        target_duration: float | None = None,
        user_metadata: Mapping[str, Any] | None = None,
        use_cot_metas: bool = True,
        use_cot_caption: bool = True,
        use_cot_language: bool = True,
        batch_size: int | None = None,
        seeds: Sequence[int] | None = None,
        progress: Any = None,
    ) -> dict[str, Any]:
        """Plan music: metadata (phase 1) and, for `llm_dit`, audio codes (phase 2).

        Args:
            caption, lyrics: what the music is like, and its words.
            infer_type: `dit` stops after the metadata; `llm_dit` goes on to the codes.
            temperature: 0 always takes the most probable token.
            cfg_scale: guidance; above 1 an unconditional prompt runs beside the other.
            negative_prompt: caption of the unconditional prompt.
            use_constrained_decoding: hold phase 1 to the grammar. Phase 2 is always held to
                audio codes.
            target_duration: seconds; the song gets `round(5 * target_duration)` codes.
            user_metadata: fields of `lm.cot.FIELDS` that are used as they are.
            use_cot_metas, use_cot_caption, use_cot_language: which fields the model may add.
            batch_size: items; None or 1 gives single results, more gives lists.
            seeds: one an item; negative ones are drawn, missing ones count up from the last, or
                from 0 where none is given.
            progress: called as `progress(fraction, desc=text)`.

        Returns:
            dict with `metadata` and `audio_codes` (lists for a batch), `success`, `error`
            and `extra_outputs` (the text of each block, the seeds).
        """
        known = dict(user_metadata or {})
        if target_duration is not None and target_duration > 0:
            known["duration"] = target_duration
        request = planner.PlanRequest(
            caption=caption,
            lyrics=lyrics,
            infer_type=infer_type,
            sampling=Sampling(temperature, top_k, top_p, repetition_penalty, cfg_scale),
            negative_prompt=negative_prompt,
            constrained=use_constrained_decoding,
            known=known,
            wanted=planner.wanted_fields(use_cot_metas, use_cot_caption, use_cot_language),
            batch=batch_size or 1,
            seeds=seeds,
        )
        try:
            with self._lock:
                return planner.plan(self._writer(progress), request)
        except AceStepError as error:
            return planner.answer({}, "", error=str(error))

    def understand_audio_from_codes(
        self,
        audio_codes: str,
        **options: Unpack[WritingOptions],
    ) -> tuple[dict[str, Any], str]:
        """Describe audio codes: (metadata and `lyrics`, message); empty on failure.

        Args:
            options: see `WritingOptions`; the temperature is 0.3 unless given.
        """

        return self._describe(describing.understand(audio_codes), {}, options, describing.FAITHFUL)

    def create_sample_from_query(
        self,
        query: str,
        instrumental: bool = False,
        vocal_language: str | None = None,
        **options: Unpack[WritingOptions],
    ) -> tuple[dict[str, Any], str]:
        """Make a whole sample of a query: (metadata, `lyrics` and `instrumental`, message)."""
        known = {} if vocal_language == "unknown" else {"language": vocal_language}
        use = describing.inspire(query, instrumental)
        made, message = self._describe(use, known, options, describing.INVENTIVE)
        if made:
            made["instrumental"] = instrumental
        return made, message

    def format_sample_from_input(
        self,
        caption: str,
        lyrics: str,
        user_metadata: Mapping[str, Any] | None = None,
        **options: Unpack[WritingOptions],
    ) -> tuple[dict[str, Any], str]:
        """Rewrite caption and lyrics in full: (metadata and `lyrics`, message).

        The one that is empty reads as the original's: `NO USER INPUT`, `[Instrumental]`.
        """
        use = describing.rewrite(caption, lyrics)
        return self._describe(use, user_metadata or {}, options, describing.INVENTIVE)

    def parse_lm_output(self, output_text: str) -> tuple[dict[str, Any], str]:
        """Metadata and audio codes in any text, see `lm.cot.parse`."""
        return cot.parse(output_text)

    def _describe(
        self,
        use: describing.MakePrompt,
        known: Mapping[str, Any],
        options: WritingOptions,
        temperature: float,
    ) -> tuple[dict[str, Any], str]:
        """(a whole block and its lyrics, `done`), or nothing and the line that says why."""
        sampling = sampling_of(options, temperature)
        try:
            with self._lock:
                writer = self._writer(options.get("progress"))
                return describing.describe(writer, use, known, sampling, options), "done"
        except AceStepError as error:
            return {}, str(error)

    def _writer(self, progress: Any) -> Writer:
        """The loaded model, ready for one generation.

        Raises:
            RequestError: none is loaded.
        """
        if self.backend is None:
            raise RequestError("no language model is loaded; call initialize first")
        self._cancel.clear()

        def report(done: int, most: int) -> None:
            if self._cancel.is_set():
                raise CancelledError("cancelled")
            if progress is not None:
                progress(done / most, desc=f"planning, token {done}")

        return Writer(
            self.backend,
            int(self.gpu_config.max_duration(True)),
            self.caption_lines,
            self.line_length,
            self.lyric_lines,
            report,
        )
