"""Tests of the language model's Triton kernels: on a Hopper GPU as they are, elsewhere interpreted."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from acestep.device import DevicePolicy, resolve
from acestep.engines.torch import language_step
from acestep.engines.torch.language_choice import Choice, Drawing
from acestep.engines.torch.language_step import LanguageWeights, Tile
from acestep.engines.torch.quantised import quantise
from acestep.lm import fused
from acestep.lm.decoding import Plan
from acestep.lm.demo import LmShape
from acestep.lm.prompts import Prompt
from acestep.lm.sampling import Sampling, fold, gumbel
from acestep.lm.tokens import AudioTokens

SMALL = {
    "joined": Tile(32, 16, 2, 4),
    "out": Tile(16, 32, 2, 4),
    "opened": Tile(32, 32, 1, 4),
    "closed": Tile(16, 16, 3, 4),
    "head": Tile(16, 32, 2, 4),
}
"""Products split among programs, and not; one that does not divide the vocabulary."""

TOKENS = AudioTokens(tuple(range(60, 110)), 58, 59, 2, 60)
PROMPTS = [Prompt([7, 3, 9, 30, 41], [8, 2, 50]), Prompt([11, 12, 13], [9, 5, 4, 6])]
SAMPLING = Sampling(0.85, None, 0.9, 1.0, 2.0)


class Engine:
    """The kernels as this machine runs them, and a model that they compute."""

    def __init__(self, on_gpu: bool, patch: pytest.MonkeyPatch) -> None:
        self.policy = resolve() if on_gpu else resolve("cpu")
        self.dtype = torch.bfloat16 if on_gpu else torch.float32
        shape = LmShape(64, 2, 4, 2, 32, 96, tied=True)
        if on_gpu:
            shape = LmShape(512, 2, 8, 4, 64, 1024, tied=True)
        else:
            for tiles in ("TILES", "WIDE_TILES", "WHOLE_TILES", "READING_TILES"):
                patch.setattr(language_step, tiles, SMALL)
            patch.setattr(language_step, "STRETCH", 4)
            patch.setattr(language_step, "READ_TILE", 8)
            patch.setattr(language_step, "SLOT_TILE", 8)
            patch.setattr(fused, "WIDE", 16)
            patch.setattr(DevicePolicy, "has_language_kernels", lambda self, dtype: True)
        # The parts of the attention are joined one after the other, as in a long song.
        constexpr = importlib.import_module("triton.language").constexpr
        patch.setattr(language_step.kernels()[0], "_LAST_READ", constexpr(1))
        self.prompts, self.length = PROMPTS, 12
        if on_gpu:
            # Long enough for several parts, of the fewest places that a product takes.
            patch.setattr(language_step, "STRETCH", 16)
            self.prompts, self.length = [_long(61, 50, 1), _long(37, 70, 2)], 96
        # A bfloat16 of 8 bits against float32, and float32 in another order.
        self.tolerance = 0.03 if on_gpu else 2e-5
        self.model = _random_model(shape).to(self.policy.device, self.dtype)
        self.exact = _random_model(shape)

    def decoding(self, plan: Plan) -> fused.FusedDecoding:
        assert fused.serves(self.model, TOKENS, plan, self.policy)
        return fused.FusedDecoding(LanguageWeights(self.model), TOKENS, plan, self.policy)

    def reference(self, rows: Sequence[Sequence[int]], exact: Any = None) -> torch.Tensor:
        """Scores of the codes after each row, by transformers in float32."""
        last = [(exact or self.exact)(torch.tensor([row])).logits[0, -1] for row in rows]
        return torch.stack(last)[:, TOKENS.codes[0] : TOKENS.codes[-1] + 1]

    def check(
        self, decoding: fused.FusedDecoding, rows: Sequence[Sequence[int]], exact: Any = None
    ) -> None:
        expected = self.reference(rows, exact)
        made = decoding._choice.logits[: len(rows)].cpu()
        atol = self.tolerance * float(expected.abs().max())
        torch.testing.assert_close(made, expected, atol=atol, rtol=0)


def _long(count: int, other: int, seed: int) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 58, (count + other,), generator=generator).tolist()
    return Prompt(ids[:count], ids[count:])


def _random_model(shape: LmShape) -> Any:
    """Weights large enough that every part of a layer can be told from the scores."""
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM(shape.config(110)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        spread = 0.3 if weight.dim() == 1 else 1.5 / weight.shape[1] ** 0.5
        weight.data = (weight.dim() == 1) + spread * torch.randn(weight.shape, generator=generator)
        weight.data = weight.data.bfloat16().float()
    return model


@pytest.fixture(scope="module")
def engine(own_kernels: bool) -> Any:
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        yield Engine(own_kernels, patch)


@pytest.fixture(scope="module")
def told(engine: Engine) -> Any:
    """A decoding that has read two prompts, and their sequences."""
    with torch.inference_mode():
        decoding = engine.decoding(Plan(2, engine.length, 4, SAMPLING, masked=False))
        decoding.start(engine.prompts, [5, 6])
        rows = [list(p.conditional) for p in engine.prompts]
        rows += [list(p.unconditional or ()) for p in engine.prompts]
        engine.check(decoding, rows)
        return decoding, rows


def test_steps_are_those_of_transformers(engine: Engine, told: Any) -> None:
    """A token chosen, then tokens given, over several stretches of cache; and to the last bit
    what an item gets alone."""
    decoding, rows = told
    with torch.inference_mode():
        decoding.choose_and_advance()
        for item, code in enumerate(decoding.chosen.tolist()):
            for row in (rows[item], rows[item + 2]):
                row.append(TOKENS.codes[0] + code)
        engine.check(decoding, rows)
        single = engine.decoding(Plan(1, engine.length, 4, SAMPLING, masked=False))
        single.start(engine.prompts[1:], [6])
        single.choose_and_advance()
        assert torch.equal(single._choice.logits[:2], decoding._choice.logits[[1, 3]])
        given = [[20, 21, 22], [30, 31, 32]]
        decoding.feed(given, 4)
        for number, row in enumerate(rows):
            row += given[number % 2]
        engine.check(decoding, rows)


def test_songs_of_one_prompt_have_it_read_once(engine: Engine) -> None:
    """And have all that each would have by itself."""
    prompt, read = engine.prompts[0], list[int]()
    with torch.inference_mode():
        both = engine.decoding(Plan(2, engine.length, 4, SAMPLING, masked=False))
        places = both._places
        both._places = lambda rows: (read.extend(rows), places(rows))[1]  # type: ignore[method-assign]
        both.start([prompt, prompt], [5, 6])
        assert read == [0, 2], "the prompt, and its counterpart"
        rows = [list(prompt.conditional)] * 2 + [list(prompt.unconditional or ())] * 2
        assert both._lengths == [len(row) for row in rows]
        engine.check(both, rows)
        for held in (both._cache.keys, both._cache.values):
            assert torch.equal(held[:, ::2], held[:, 1::2])
            assert (held[:, :2, :, : len(rows[0])].abs().amax(dim=-1) > 0).all()


def test_weights_in_eight_bits(engine: Engine, own_kernels: bool) -> None:
    """The kernels read whole numbers: the scores are those of the modules over the same."""
    shape = LmShape(64, 1, 4, 2, 32, 128, tied=True)
    if own_kernels:
        shape = LmShape(512, 2, 8, 4, 64, 1024, tied=True)
    with torch.inference_mode():
        model, exact = (quantise(_random_model(shape), "int8", resolve("cpu")) for _ in range(2))
        model.to(engine.policy.device, engine.dtype)
        plan = Plan(1, 12, 4, SAMPLING, masked=False)
        assert fused.serves(model, TOKENS, plan, engine.policy)
        decoding = fused.FusedDecoding(LanguageWeights(model), TOKENS, plan, engine.policy)
        decoding.start(PROMPTS[:1], [5])
        rows = [list(PROMPTS[0].conditional), list(PROMPTS[0].unconditional or ())]
        engine.check(decoding, rows, exact)
        layer = exact.get_decoder().layers[0].mlp.down_proj
        assert layer.weight.dtype == torch.int8


@pytest.mark.parametrize(
    ("sampling", "masked"),
    [
        (Sampling(0.85, None, 0.9, 1.0, 2.0), False),
        (Sampling(1.4, None, 0.2, 1.0, 1.5), False),
        (Sampling(1.4, None, 0.0, 1.0, 1.5), False),
        (Sampling(0.7, None, None, 1.0, 3.0), True),
        (Sampling(0.0, None, None, 1.0, 2.0), True),
        (Sampling(0.9, None, 0.6, 1.0, 1.0), True),
    ],
)
def test_tokens_are_drawn_as_by_sorting(engine: Engine, sampling: Sampling, masked: bool) -> None:
    """Many items at once: transformers' processors with the same noise choose the same."""
    batch, width, first = 24, 300, 0 if masked else 60
    device, generator = engine.policy.device, torch.Generator().manual_seed(3)
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    steps = 0 if masked else 3
    drawing = Drawing(batch, width, steps, first, sampling.guidance, sampling.temperature, top_p)
    rows = batch * (2 if sampling.guided else 1)
    choice = Choice(drawing, rows, device)
    logits = 3 * torch.randn(rows, width, generator=generator)
    choice.logits.copy_(logits)
    seeds = fold([*range(batch - 1), 2**40 + 17])
    choice.seeds.copy_(torch.tensor(seeds))
    choice.steps.fill_(2)
    allowed = torch.ones(batch, width, dtype=torch.bool)
    if masked:
        allowed = torch.rand(batch, width, generator=generator) < 0.1
        allowed[:, 299] = True
        choice.masks.copy_(_packed(allowed))
    scores = sampling.guide(torch.zeros(batch, 1), logits).masked_fill(~allowed, -torch.inf)
    scores = sampling.processors()(torch.zeros(batch, 1, dtype=torch.int64), scores)
    if not sampling.greedy:
        scores = scores + gumbel(torch.tensor(seeds)[:, None], torch.tensor([2]), width)
    expected = scores.argmax(dim=1)
    place = _Place(rows, device)
    choice(place)
    assert choice.chosen.tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 8
    doubled = expected.repeat(rows // batch).tolist()
    assert place.ids.tolist() == [first + choice for choice in doubled]
    assert place.positions.tolist() == [8] * rows
    assert choice.steps.tolist() == [3] * batch
    if not masked:
        assert choice.made[:, 2].tolist() == expected.tolist()


class _Place:
    """Where a choice leaves what it has drawn: the slots of a pass."""

    ahead = False

    def __init__(self, rows: int, device: torch.device) -> None:
        self.ids = torch.zeros(rows, dtype=torch.int32, device=device)
        self.positions = torch.full_like(self.ids, 7)


def _packed(allowed: torch.Tensor) -> torch.Tensor:
    """A bit for each token, in words of 32."""
    spare = -allowed.shape[1] % 32
    bits = torch.nn.functional.pad(allowed.long(), (0, spare)).unflatten(1, (-1, 32))
    words = (bits << torch.arange(32)).sum(dim=2)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def test_other_models_and_wishes_are_left_to_transformers(engine: Engine) -> None:
    def serves(sampling: Sampling, batch: int = 1, tokens: AudioTokens = TOKENS) -> bool:
        plan = Plan(batch, 32, 4, sampling, masked=False)
        return fused.serves(engine.model, tokens, plan, engine.policy)

    assert serves(SAMPLING)
    assert not serves(Sampling(0.85, 5)), "the best few need a sort"
    assert not serves(Sampling(0.85, repetition_penalty=1.1))
    assert not serves(SAMPLING, batch=64)
    scattered = AudioTokens((*range(60, 108), 109, 108), 58, 59, 2, 60)
    assert not serves(SAMPLING, tokens=scattered)
    model = _random_model(LmShape(48, 1, 4, 2, 32, 96, tied=True))
    assert not language_step.fits(model, SMALL), "a width that does not divide"


def test_a_decoding_step_needs_few_launches(
    engine: Engine, own_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five a layer, and four for the token: what makes a step as fast as the memory."""
    decoding = engine.decoding(Plan(1, 32, 4, SAMPLING, masked=False))
    launched: list[Any] = []
    for module in (language_step, importlib.import_module(Choice.__module__)):
        monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: launched.append(kernel))
    decoding._choice(decoding._step)
    decoding._step()
    decoding._step.head(decoding._head, decoding._choice.logits)
    assert len(launched) == 4 + 5 * 2
