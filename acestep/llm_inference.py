"""`LLMHandler`: the 5 Hz language model, from a caption to metadata and audio codes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from acestep.device import DevicePolicy, resolve
from acestep.errors import AceStepError, CancelledError, RequestError
from acestep.gpu_config import GPUConfig, get_gpu_config
from acestep.lm import backend as backends
from acestep.lm import cot, models
from acestep.lm.backend import Backend
from acestep.lm.options import WritingOptions, sampling_of
from acestep.lm.prompts import NO_CAPTION, NO_NEGATIVE_PROMPT, Prompt, Prompts
from acestep.lm.sampling import Sampling
from acestep.lm.writer import Wish, Writer
from acestep.song import normalise
from acestep.song import seeds as seeding

INFER_TYPES = ("dit", "llm_dit")
_DEMO_LINES = 3
# Temperatures of a description of what is there, and of one that is made up.
_FAITHFUL, _INVENTIVE = 0.3, 0.85


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
        self._tokens: models.AudioTokens | None = None
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
    ) -> tuple[str, bool]:
        """Load a model; on failure the handler stays as it was.

        Args:
            checkpoint_dir: folder that holds the models, searched first.
            lm_model_path: which model, see `lm.models.find`.
            backend: `pt` or `vllm`; None or `auto` lets the device decide.
            device: see `device.resolve`; used or refused, never replaced.
            offload_to_cpu: keep the model on the host between generations.
            dtype: overrides the policy's precision.
            compile_model: compile the decoding step on first use.

        Returns:
            (message, ok); on failure the message says what to do.
        """
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        try:
            return self.load(
                lm_model_path,
                resolve(device, dtype=name),
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
        if offload and policy.unified_memory:
            raise RequestError(
                f"offloading is pointless on {policy.name}: the host and the device share their "
                "memory; leave it out"
            )
        name, note = backends.choose(backend, policy)
        folder = models.find(model, checkpoint_dir, get_gpu_config(policy=policy))
        with self._lock:
            loaded = backends.load(
                name, folder, policy, offload=offload, compile_model=compile_model
            )
            tokens = models.audio_tokens(loaded.tokenizer, folder)
            self.unload()
            self.backend, self.policy, self._tokens = loaded, policy, tokens
            self.model_name = folder.name
            if models.is_demo(folder):
                # Random weights seldom end a text by themselves.
                self.caption_lines = min(self.caption_lines, _DEMO_LINES)
                self.lyric_lines = min(self.lyric_lines, _DEMO_LINES)
            self._checkpoint_dir = str(checkpoint_dir) if checkpoint_dir else None
        dtype_name = policy.dtypes["lm"].name
        status = f"{folder.name} on {policy.name} ({dtype_name}), backend {name}"
        return f"{status}; {note}" if note else status

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
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, cfg_scale)
        batch = batch_size or 1
        known = dict(user_metadata or {})
        if target_duration is not None and target_duration > 0:
            known["duration"] = target_duration
        wanted = {
            *(cot.METAS if use_cot_metas else ()),
            *(("caption",) if use_cot_caption else ()),
            *(("language",) if use_cot_language else ()),
        }
        try:
            with self._lock:
                writer = self._writer(progress)
                _check_request(infer_type, batch, sampling)
                numbers = _seeds(seeds, batch)
                known = cot.known_fields(known, writer.max_duration)
                wish = Wish(caption, lyrics, negative_prompt, sampling, numbers)
                plans, texts = writer.plan(wish, known, wanted, use_constrained_decoding)
                codes = writer.codes(wish, plans) if infer_type == "llm_dit" else [""] * batch
        except AceStepError as error:
            return _answer({}, "", error=str(error))
        extra = {"cot": texts, "seeds": numbers}
        if batch == 1:
            return _answer(plans[0], codes[0], extra)
        return _answer(plans, codes, extra)

    def understand_audio_from_codes(
        self,
        audio_codes: str,
        **options: Unpack[WritingOptions],
    ) -> tuple[dict[str, Any], str]:
        """Describe audio codes: (metadata and `lyrics`, message); empty on failure.

        Args:
            options: see `WritingOptions`; the temperature is 0.3 unless given.
        """

        def prompt(prompts: Prompts) -> Prompt:
            codes = cot.parse(audio_codes)[1]
            if not codes:
                raise RequestError("there are no audio codes to understand")
            return prompts.understand(codes)

        return self._describe(prompt, {}, options, _FAITHFUL)

    def create_sample_from_query(
        self,
        query: str,
        instrumental: bool = False,
        vocal_language: str | None = None,
        **options: Unpack[WritingOptions],
    ) -> tuple[dict[str, Any], str]:
        """Make a whole sample of a query: (metadata, `lyrics` and `instrumental`, message)."""
        known = {} if vocal_language == "unknown" else {"language": vocal_language}

        def prompt(prompts: Prompts) -> Prompt:
            if not query.strip():
                raise RequestError("the query is empty; say in a few words what to make")
            return prompts.inspire(query, instrumental)

        made, message = self._describe(prompt, known, options, _INVENTIVE)
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

        def prompt(prompts: Prompts) -> Prompt:
            if not caption.strip() and not lyrics.strip():
                raise RequestError("caption and lyrics are empty; give at least one")
            return prompts.format(
                caption if caption.strip() else NO_CAPTION,
                lyrics if lyrics.strip() else normalise.INSTRUMENTAL,
            )

        return self._describe(prompt, user_metadata or {}, options, _INVENTIVE)

    def parse_lm_output(self, output_text: str) -> tuple[dict[str, Any], str]:
        """Metadata and audio codes in any text, see `lm.cot.parse`."""
        return cot.parse(output_text)

    def _describe(
        self,
        make_prompt: Callable[[Prompts], Prompt],
        known: Mapping[str, Any],
        options: WritingOptions,
        temperature: float,
    ) -> tuple[dict[str, Any], str]:
        """A whole block and lyrics after it."""
        sampling = sampling_of(options, temperature)
        constrained = options.get("use_constrained_decoding", True)
        try:
            with self._lock:
                writer = self._writer(options.get("progress"))
                sampling.checked()
                fields = cot.known_fields(known, writer.max_duration)
                (seed,) = _seeds(options.get("seed", 0), 1)
                made = writer.describe(make_prompt, fields, sampling, constrained, seed)
        except AceStepError as error:
            return {}, str(error)
        return made, "done"

    def _writer(self, progress: Any) -> Writer:
        """The loaded model, ready for one generation.

        Raises:
            RequestError: none is loaded.
        """
        if self.backend is None or self._tokens is None:
            raise RequestError("no language model is loaded; call initialize first")
        self._cancel.clear()

        def report(done: int, most: int) -> None:
            if self._cancel.is_set():
                raise CancelledError("cancelled")
            if progress is not None:
                progress(done / most, desc=f"planning, token {done}")

        return Writer(
            self.backend,
            self._tokens,
            int(self.gpu_config.max_duration(True)),
            self.caption_lines,
            self.line_length,
            self.lyric_lines,
            report,
        )


def _answer(
    metadata: Any, codes: Any, extra: dict[str, Any] | None = None, error: str | None = None
) -> dict[str, Any]:
    return {
        "metadata": metadata,
        "audio_codes": codes,
        "success": error is None,
        "error": error,
        "extra_outputs": extra or {},
    }


def _check_request(infer_type: str, batch: int, sampling: Sampling) -> None:
    if infer_type not in INFER_TYPES:
        raise RequestError(
            f"unknown infer_type '{infer_type}'; choose from {', '.join(INFER_TYPES)}"
        )
    if batch < 1:
        raise RequestError(f"batch size {batch} is out of range; expected at least 1")
    sampling.checked()


def _seeds(seeds: Sequence[int] | str | int | None, batch: int) -> list[int]:
    """One an item, counted up from the last given or from 0; a negative one is drawn."""
    return list(seeding.completed(normalise.seeds(seeds) or (0,), batch))
