"""The engine `vllm`: vLLM's public API, for CUDA, with guidance as a logits processor."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acestep.device import DevicePolicy
from acestep.errors import CheckpointError, first_line
from acestep.lm import models, tokens
from acestep.lm.backend import CodeJob, OnToken, TextJob
from acestep.lm.prompts import Prompt
from acestep.lm.sampling import Sampling, fold

# The share of the device's free memory that vLLM may take: the DiT needs the rest.
_MEMORY_SHARE = 0.4
_LONGEST = 8192


class VllmBackend:
    """A model in vLLM.

    Args:
        folder: the model's folder.
        policy: the device, which must be the current one of its kind.

    Raises:
        CheckpointError: the folder does not hold a 5 Hz language model.
        RequestError: the model does not fit into the device's memory.
    """

    name = "vllm"

    def __init__(self, folder: Path, policy: DevicePolicy) -> None:
        models.check_memory(folder, policy)
        self.tokenizer = tokens.load_tokenizer(folder)
        self.tokens = tokens.audio_tokens(self.tokenizer, folder)
        self._policy = policy
        from vllm import LLM

        share = _MEMORY_SHARE * policy.free_memory / policy.total_memory
        try:
            self._engine = LLM(
                model=str(folder),
                dtype=policy.dtypes["lm"].name,
                max_model_len=_LONGEST,
                gpu_memory_utilization=round(share, 3),
                logits_processors=["acestep.lm.vllm_guidance:Guidance"],
                structured_outputs_config={"backend": "guidance"},
                disable_log_stats=True,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise CheckpointError(f"{folder}: vLLM cannot load it ({first_line(error)})") from None

    def text(self, job: TextJob, on_token: OnToken) -> list[list[int]]:
        """See `Backend`; progress is told at the end only."""
        from vllm.sampling_params import StructuredOutputsParams

        options: dict[str, Any] = {"max_tokens": job.limit, "stop_token_ids": [job.end_id]}
        if job.grammar is not None:
            options["structured_outputs"] = StructuredOutputsParams(grammar=job.grammar)
        elif self.tokens.text is not None:
            options["allowed_token_ids"] = list(range(self.tokens.text))
        made = self._generate(job.prompts, job.seeds, job.sampling, [options] * len(job.prompts))
        on_token(job.limit, job.limit)
        return made

    def codes(self, job: CodeJob, on_token: OnToken) -> list[list[int]]:
        """See `Backend`; progress is told at the end only."""
        options = [
            {
                "max_tokens": count,
                "min_tokens": count,
                "ignore_eos": True,
                "allowed_token_ids": list(self.tokens.codes),
            }
            for count in job.counts
        ]
        number = {token: code for code, token in enumerate(self.tokens.codes)}
        made = self._generate(job.prompts, job.seeds, job.sampling, options)
        on_token(max(job.counts), max(job.counts))
        return [[number[token] for token in row] for row in made]

    def close(self) -> None:
        """See `Backend`."""
        self._engine.llm_engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        self._policy.flush()

    def _generate(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        sampling: Sampling,
        options: Sequence[dict[str, Any]],
    ) -> list[list[int]]:
        """Each prompt, beside its unconditional one when guided; both choose alike."""
        from vllm import SamplingParams

        inputs, settings = [], []
        for item, (prompt, seed) in enumerate(zip(prompts, fold(seeds), strict=True)):
            pair = [prompt.conditional]
            if sampling.guided:
                pair.append(prompt.unconditional or ())
            for role, ids in enumerate(pair):
                guidance = {"pair": item, "role": role, "scale": sampling.guidance}
                inputs.append({"prompt_token_ids": list(ids)})
                settings.append(
                    SamplingParams(
                        temperature=sampling.temperature,
                        top_k=sampling.top_k or 0,
                        top_p=sampling.top_p or 1.0,
                        repetition_penalty=sampling.repetition_penalty,
                        seed=seed,
                        detokenize=False,
                        extra_args=guidance if sampling.guided else None,
                        **options[item],
                    )
                )
        outputs = self._engine.generate(inputs, settings, use_tqdm=False)
        step = 2 if sampling.guided else 1
        return [list(output.outputs[0].token_ids) for output in outputs[::step]]
