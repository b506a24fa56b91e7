"""Speed of the engine `pt` against transformers' plain `generate()`, at any shape.

`acestep bench --lm 1.7B --batch 1 8` prints the same table. More options:

python -m acestep.bench.lm_benchmark --device cuda --shape 1.7B --batch 1 8
python -m acestep.bench.lm_benchmark --device cpu --shape small --codes 50
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from acestep.device import DTYPE_CHOICES, DevicePolicy, resolve
from acestep.engines.torch.language_step import LanguageWeights
from acestep.engines.torch.quantised import Quantised, quantise
from acestep.llm_inference import LLMHandler
from acestep.lm import fused
from acestep.lm.cot import FIELDS
from acestep.lm.decoding import Decoder, Decoding, Plan
from acestep.lm.demo import CHAT_TEMPLATE, LmShape
from acestep.lm.grammar import Grammar, Shape, Vocabulary, lark
from acestep.lm.prompts import Prompt
from acestep.lm.pt import PtBackend
from acestep.lm.sampling import Sampling
from acestep.lm.tokens import CODEBOOK_SIZE, AudioTokens

SHAPES = {
    "4B": (LmShape(2560, 36, 32, 8, 128, 9728, tied=True), 217_204),
    "1.7B": (LmShape(2048, 28, 16, 8, 128, 6144, tied=True), 217_204),
    "0.6B": (LmShape(1024, 28, 16, 8, 128, 3072, tied=True), 217_204),
    "small": (LmShape(256, 4, 8, 4, 32, 768, tied=True), 217_204),
}
"""Widths and vocabulary; the larger three are those of the published models."""

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PROMPT_TOKENS = 200
_MASK_STEPS = 60
_WARM_UP_CODES = 5
_COPIED, _COPIES = 1 << 32, 9


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each measurement, as it is made; all are made in this one process."""
    arguments = _parser().parse_args(argv)
    policy = resolve(arguments.device, dtype=arguments.dtype)
    with policy.current():
        measure(
            policy,
            arguments.shape,
            arguments.batch,
            arguments.codes,
            arguments.repeats,
            compiled=arguments.compile,
            bandwidth=arguments.bandwidth,
        )
    return 0


def measure(
    policy: DevicePolicy,
    name: str,
    batches: Sequence[int],
    codes: int,
    repeats: int,
    *,
    compiled: bool = False,
    bandwidth: float | None = None,
    plain: bool = True,
    masks: bool = True,
) -> None:
    """Print the rows of one shape.

    Args:
        policy: the device.
        name: one of `SHAPES`.
        batches: how many items at a time.
        codes: codes of an item.
        repeats: runs of each, of which the median counts.
        compiled: measure the step that inductor compiles too.
        bandwidth: of the memory in TB/s; measured where it is None.
        plain: measure transformers' `generate()` too.
        masks: measure what the grammar's masks cost too.
    """
    shape, vocabulary = SHAPES[name]
    model, tokens = make_model(shape, vocabulary, policy)
    bandwidth = bandwidth or measured_bandwidth(policy)
    sampling = Sampling(0.85, None, 0.9, 1.0, 2.0)
    _print((f"{name} on {policy.name}", "batch", "speed", "ratio", "notes"))
    for batch in batches:
        prompts, made = _prompts(batch, tokens), batch * codes
        limit = codes * weight_bytes(model, tokens) / (bandwidth * 1e12)
        theirs = _plain_seconds(model, tokens, prompts, sampling, codes, policy) if plain else limit
        if plain:
            _print(_row("transformers generate()", batch, made, theirs, theirs))
        plan = Plan.of(prompts, sampling, codes, masked=False)
        for decoder in _decoders(model, tokens, plan, policy, compiled):
            started = time.perf_counter()
            with torch.inference_mode():
                decoding = decoder.make()
                decoding.start(prompts, range(batch))
                decoding.choose_and_advance()
                decoding.made.tolist()
                first = time.perf_counter() - started
                ours = _seconds(partial(_decode, decoding, prompts, codes), policy, repeats)
                step = ours - _seconds(partial(_decode, decoding, prompts, 0), policy, repeats)
            _print(
                (
                    *_row(decoder.name, batch, made, ours, theirs),
                    f"{made / step:.0f} after the prompt, {100 * limit / step:.0f} % of the limit; "
                    f"first {first:.2f} s",
                )
            )
        _print(_row(f"limit at {bandwidth:.2f} TB/s", batch, made, limit, theirs))
        if masks:
            _print(_mask_row(model, tokens, vocabulary, prompts, sampling, policy, batch))


@dataclass(frozen=True)
class _Contender:
    """A way to decode: its name in the table, and how it is made."""

    name: str
    make: Callable[[], Decoder]


def _decoders(
    model: Any, tokens: AudioTokens, plan: Plan, policy: DevicePolicy, compiled: bool
) -> list[_Contender]:
    made = [_Contender("transformers' modules", lambda: Decoding(model, tokens, plan, policy))]
    if compiled:
        made.append(
            _Contender(
                "compiled", lambda: Decoding(model, tokens, plan, policy, compile_model=True)
            )
        )
    if fused.serves(model, tokens, plan, policy):
        weights = LanguageWeights(model)
        made.append(
            _Contender("own kernels", lambda: fused.FusedDecoding(weights, tokens, plan, policy))
        )
    return made


def measured_bandwidth(policy: DevicePolicy) -> float:
    """TB/s at which the device copies within its memory, bytes read and written counted."""
    count = _COPIED if policy.is_accelerator else _COPIED // 16
    source = torch.ones(count, dtype=torch.int8, device=policy.device)
    target = torch.zeros_like(source)

    def copy() -> None:
        target.copy_(source)

    seconds = _seconds(copy, policy, _COPIES)
    return 2 * count / seconds / 1e12


def _plain_seconds(
    model: Any,
    tokens: AudioTokens,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    codes: int,
    policy: DevicePolicy,
) -> float:
    """One run; the first is as slow as the others, so that a few codes are warming up enough."""
    plain_generate(model, tokens, prompts, sampling, _WARM_UP_CODES)
    work = partial(plain_generate, model, tokens, prompts, sampling, codes)
    return _seconds(work, policy, 1, warm_up=0)


def make_model(shape: LmShape, vocabulary: int, policy: DevicePolicy) -> tuple[Any, AudioTokens]:
    """A model with random weights on the device; the audio codes are its last tokens."""
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(policy.dtype_of("lm"))
    try:
        with policy.device:
            model = Qwen3ForCausalLM(shape.config(vocabulary)).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    if policy.quantization:
        quantise(model, policy.quantization, policy)
    first = vocabulary - CODEBOOK_SIZE
    codes = tuple(range(first, vocabulary))
    return model, AudioTokens(codes, first - 2, first - 1, 2, first)


def make_planner(name: str, policy: DevicePolicy) -> LLMHandler:
    """A language model of one of `SHAPES` with random weights, as a song's planner."""
    model, tokens = make_model(*SHAPES[name], policy)
    tokenizer = SyntheticTokenizer(tokens).whole()
    planner = LLMHandler()
    planner.adopt(PtBackend.of(model, tokenizer, tokens, policy), policy, f"{name}, random weights")
    return planner


def plain_generate(
    model: Any, tokens: AudioTokens, prompts: Sequence[Prompt], sampling: Sampling, count: int
) -> None:
    """The same work through transformers' own loop and its own guidance."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class OnlyCodes(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            allowed = torch.full_like(scores, -torch.inf)
            allowed[:, tokens.codes[0] : tokens.codes[-1] + 1] = 0
            return scores + allowed

    device = model.device
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([list(p.conditional) for p in prompts], device=device)
    other = torch.tensor([list(p.unconditional or ()) for p in prompts], device=device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        negative_prompt_ids=other,
        negative_prompt_attention_mask=torch.ones_like(other),
        guidance_scale=sampling.guidance,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=sampling.top_p,
        min_new_tokens=count,
        max_new_tokens=count,
        logits_processor=LogitsProcessorList([OnlyCodes()]),
    )


def weight_bytes(model: Any, tokens: AudioTokens) -> int:
    """Bytes of weights that one step has to read: the layers, and the output of the codes."""
    body = model.get_decoder()
    held: list[torch.Tensor] = list(body.layers.parameters())
    for part in body.layers.modules():
        held += part.buffers() if isinstance(part, Quantised) else ()
    layers = sum(tensor.numel() * tensor.element_size() for tensor in held)
    head = model.get_output_embeddings().weight
    return int(layers + len(tokens.codes) * head.shape[1] * head.element_size())


def mask_seconds(vocabulary: Vocabulary, tokens: AudioTokens, batch: int) -> list[float]:
    """Time to compute the masks of a batch, for each token of a random text."""
    generator = torch.Generator().manual_seed(0)
    rules = lark(Shape(FIELDS), tokens.think_open, tokens.think_close, tokens.end)
    grammar = Grammar(vocabulary, rules, batch)
    times: list[float] = []
    while len(times) < _MASK_STEPS:
        started = time.perf_counter()
        masks = grammar.masks()
        times.append(time.perf_counter() - started)
        bits = (masks[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
        allowed = bits.flatten(1).float()
        grammar.consume(torch.multinomial(allowed, 1, generator=generator).flatten().tolist())
        if grammar.finished:
            grammar = Grammar(vocabulary, rules, batch)
    return times


class SyntheticTokenizer:
    """A byte-level tokenizer of any size: bytes, then words made of letters and a space."""

    eos_token_id = 2

    def __init__(self, tokens: AudioTokens) -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        table = bytes_to_unicode()
        self._bytes = [*_SPECIAL, *(table[n] for n in range(256))]
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        words = []
        for number in range(tokens.codes[0] - 2 - len(self._bytes)):
            word, rest = "", number + 26
            while rest:
                rest, digit = divmod(rest, 26)
                word += letters[digit]
            words.append((table[32] if number % 2 else "") + word + letters[number % 26])
        names = [*self._bytes, *words, "<think>", "</think>"]
        self._vocabulary = {name: number for number, name in enumerate(names)}
        self._table = table

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return self._vocabulary

    def whole(self) -> Any:
        """The same as a tokenizer of transformers, with a template for chats."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        made = Tokenizer(models.BPE(vocab=self._vocabulary, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens(list(_SPECIAL))
        made.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=_SPECIAL[2])
        tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens that are no text."""
        tags = (*_SPECIAL, "<think>", "</think>")
        return {name: self._vocabulary[name] for name in tags}

    def __call__(self, text: str, add_special_tokens: bool = False) -> Any:
        """Tokenize byte by byte."""
        ids = [self._vocabulary[self._table[byte]] for byte in text.encode()]
        return argparse.Namespace(input_ids=ids)


def _mask_row(
    model: Any,
    tokens: AudioTokens,
    size: int,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    policy: DevicePolicy,
    batch: int,
) -> tuple[str, ...]:
    vocabulary = Vocabulary(SyntheticTokenizer(tokens), tokens.text or size)
    times = mask_seconds(vocabulary, tokens, batch)
    plan = Plan.of(prompts, sampling, _MASK_STEPS, masked=True)
    rules = lark(Shape(FIELDS), tokens.think_open, tokens.think_close, tokens.end)
    anything = torch.full((batch, vocabulary.words), -1, dtype=torch.int32)
    with torch.inference_mode():
        *_, decoder = _decoders(model, tokens, plan, policy, compiled=False)
        decoding = decoder.make()

        def step(constraint: Grammar | None) -> float:
            """Seconds of a step of the engine's loop, with a grammar or without."""
            decoding.start(prompts, range(batch))
            policy.synchronize()
            started, done = time.perf_counter(), 0
            while done < _MASK_STEPS and not (constraint and constraint.finished):
                decoding.choose(constraint.masks() if constraint else anything)
                chosen = decoding.chosen.tolist()
                decoding.advance()
                if constraint:
                    constraint.consume(chosen)
                done += 1
            policy.synchronize()
            return (time.perf_counter() - started) / done

        step(None)
        plain = statistics.median(step(None) for _ in range(3))
        held = statistics.median(step(Grammar(vocabulary, rules, batch)) for _ in range(3))
    mean, waited = statistics.fmean(times), max(held - plain, 0.0)
    return (
        "mask of a text token", str(batch), f"{1e6 * mean:.0f} us",
        f"{100 * waited / held:.1f} % of a step of {1e6 * held:.0f} us are waited for",
    )  # fmt: skip


def _decode(decoding: Decoder, prompts: Sequence[Prompt], count: int) -> None:
    """Read the prompts and make so many codes after them."""
    decoding.start(prompts, range(len(prompts)))
    for _ in range(count):
        decoding.choose_and_advance()
    decoding.made.tolist()


def _prompts(batch: int, tokens: AudioTokens) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, tokens.codes[0], (batch, 2, _PROMPT_TOKENS), generator=generator)
    return [Prompt(pair[0], pair[1]) for pair in ids.tolist()]


def _seconds(
    work: Callable[[], None], policy: DevicePolicy, repeats: int, warm_up: int = 1
) -> float:
    """Median time of some runs, after those that do not count."""
    times = []
    for _ in range(repeats + warm_up):
        policy.synchronize()
        started = time.perf_counter()
        work()
        policy.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[warm_up:])


def _row(name: str, batch: int, made: int, seconds: float, plain: float) -> tuple[str, ...]:
    return name, str(batch), f"{made / seconds:.1f} codes/s", f"{plain / seconds:.2f} x"


def _print(cells: Sequence[str]) -> None:
    from rich.console import Console

    widths = (24, 6, 16, 8)
    line = "".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False))
    Console(width=120, highlight=False).print(line, *cells[len(widths) :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="see acestep --device")
    parser.add_argument("--dtype", choices=DTYPE_CHOICES, default=None, help="precision")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes")
    parser.add_argument("--codes", type=int, default=150, help="codes an item; 150 are 30 s")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median")
    parser.add_argument("--compile", action="store_true", help="measure the compiled step too")
    parser.add_argument(
        "--bandwidth", type=float, help="memory bandwidth in TB/s, for the limit; else measured"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
