"""The engine `pt`: what it refuses, where it puts the model, and running out of memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from acestep.device import resolve
from acestep.errors import CheckpointError
from acestep.lm import loading, models
from acestep.lm.pt import PtBackend


@pytest.fixture(scope="module")
def demo() -> Path:
    return models.find("demo")


@pytest.mark.parametrize("damage", ["tokenizer", "weights", "codes", "shape"])
def test_damaged_models_are_refused(demo: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "lm"
    shutil.copytree(demo, folder)
    if damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif damage == "weights":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif damage == "codes":
        from acestep.demo.recipe import make_tokenizer

        make_tokenizer(600).save_pretrained(folder)
    else:
        text = (folder / "config.json").read_text()
        assert '"hidden_size": 192' in text
        (folder / "config.json").write_text(text.replace('"hidden_size": 192', '"hidden_size": 64'))
    with pytest.raises(CheckpointError, match=str(folder)):
        PtBackend(folder, resolve("cpu"))


def test_offloading_and_compiling_are_options(demo: Path) -> None:
    """On the host offloading moves nothing, but its path is the same."""
    from acestep.lm.backend import CodeJob
    from acestep.lm.prompts import Prompt
    from acestep.lm.sampling import Sampling

    made: Any = loading.load("pt", demo, resolve("cpu"), offload=True)
    job = CodeJob([Prompt([5, 6])], [1], Sampling(), [3])
    first = made.codes(job, lambda done, most: None)
    assert first == made.codes(job, lambda done, most: None)
    assert len(first[0]) == 3
    made.close()


def test_running_out_of_memory_is_one_line(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from acestep.errors import GenerationError
    from acestep.lm.backend import CodeJob
    from acestep.lm.decoding import Decoding
    from acestep.lm.prompts import Prompt
    from acestep.lm.sampling import Sampling

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    made: Any = loading.load("pt", demo, resolve("cpu"))
    monkeypatch.setattr(Decoding, "start", full)
    with pytest.raises(GenerationError, match=r"cpu ran out of memory in the language model \(t"):
        made.codes(CodeJob([Prompt([5])], [1], Sampling(), [3]), lambda done, most: None)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_greedy_text_and_codes_are_those_of_transformers(
    demo: Path, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    """Token by token through transformers' model, without a cache; what the grammar forces
    costs the engine a forward for the whole of it, and none where it begins the text."""
    import torch

    from acestep.lm import grammar
    from acestep.lm.backend import CodeJob, TextJob
    from acestep.lm.decoding import Decoding
    from acestep.lm.prompts import Prompts
    from acestep.lm.sampling import Sampling

    made: Any = loading.load("pt", demo, resolve("cpu"))
    tokens = made.tokens
    prompt = Prompts(made.tokenizer).plan("rain", "la", guided=guidance > 1)
    sampling = Sampling(0.0, guidance=guidance)
    shape = grammar.Shape(("bpm", "keyscale", "language"), {"bpm": 120})
    rules = grammar.lark(shape, tokens.think_open, tokens.think_close, tokens.end)

    def scores(text: list[int]) -> torch.Tensor:
        made.model.set_attn_implementation("sdpa")
        with torch.inference_mode():
            rows = [
                torch.tensor([[*ids, *text]])
                for ids in (prompt.conditional, prompt.unconditional)
                if ids
            ]
            logits = torch.cat([made.model(row).logits[:, -1] for row in rows])
        return sampling.guide(torch.zeros(1, 1), logits)[0]

    text: list[int] = []
    constraint, drawn = grammar.Grammar(made._vocabulary, rules, 1), 0
    while not constraint.finished:
        following = constraint.forced(99)[0]
        if not following:
            words = constraint.masks()[0]
            bits = (words[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
            allowed = bits.flatten()[: made._vocabulary.size] == 1
            best = scores(text)[: len(allowed)].masked_fill(~allowed, -torch.inf)
            following, drawn = [int(best.argmax())], drawn + 1
        for token in following:
            constraint.consume([token])
        text += following

    ran: list[str] = []
    for name in ("start", "feed", "advance"):
        plain = getattr(Decoding, name)

        def noted(
            self: Any, *values: Any, kind: str = name, run: Any = plain, **named: Any
        ) -> None:
            ran.append(kind)
            run(self, *values, **named)

        monkeypatch.setattr(Decoding, name, noted)
    job = TextJob([prompt], [0], sampling, rules, tokens.think_close, 99)
    assert made.text(job, lambda done, most: None) == [text]
    assert len(text) > 2 * drawn
    assert len(ran) == drawn, "a forward for each token drawn but the last, and one for the prompt"

    wish = CodeJob([prompt], [0], sampling, [6])
    (codes,) = made.codes(wish, lambda done, most: None)
    for number, code in enumerate(codes):
        row = [tokens.codes[0] + code for code in codes[:number]]
        assert code == int(scores(row)[list(tokens.codes)].argmax())
