"""Tests of the built-in planner: words, prompts, factored codes, loss, and training that goes on."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.demo import planner_model
from acestep.demo.music import METRES, compose
from acestep.demo.planner_model import CODES, LEVELS, Planner, PlannerShape
from acestep.device import resolve
from acestep.lm.cot import FIELDS, parse
from acestep.lm.demo import planner_tokenizer
from acestep.lm.grammar import Grammar, Shape, Vocabulary, lark
from acestep.lm.prompts import Prompts
from acestep.training.planner import judge, loss, recipe
from acestep.training.planner.material import INSTRUMENTAL, Chunk, Scribe, chunk, text_tokenizer
from acestep.training.planner.shelf import IGNORED, Shelf
from acestep.training.planner.wording import Asked, Chooser, Plan, answer, ask, varied, writable
from conformance import simulate

SMALL = PlannerShape(hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, intermediate=16)


@pytest.fixture(scope="module")
def written() -> Chunk:
    return chunk(seed=3, count=6, seconds=10.0, words=4)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """With the codes."""
    return planner_tokenizer()


def plan(seed: int) -> Plan:
    random = np.random.default_rng(seed)
    return varied(Plan.of(compose(random, 1.0), 20), Chooser(random))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_captions_say_what_they_claim_and_lose_no_word(seed: int) -> None:
    one = plan(seed)
    assert one.metre in METRES
    told = ask(one, Chooser(np.random.default_rng(seed)))
    assert ("bpm" not in told.says) or str(one.bpm) in told.caption
    made = answer(told, one)
    assert writable(told.caption).strip(" ,.;") in made
    assert writable(made) == made
    if "instrument" not in told.says:
        assert one.instrument in made
    if "drums" not in told.says:
        assert made.count("with drums") + made.count("without drums") >= 1


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_any_words_are_made_writable(text: str) -> None:
    made = writable(text)
    assert "\n" not in made
    assert not set("<>") & set(made)
    assert made == "" or made[0].isalnum()
    assert answer(Asked(text, frozenset()), plan(1))


def test_every_answer_obeys_the_grammar(written: Chunk) -> None:
    """What the planner learns to write is what the grammar lets it write."""
    tokenizer = text_tokenizer()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<|im_end|>"])
    rows = [row for row in written.rows if row.kind != "codes"]
    assert {row.kind for row in rows} == {"understand", "plan", "format", "inspire"}
    for row in rows:
        answered = [int(token) for token in row.tokens[row.start :]]
        text = tokenizer.decode(answered)
        fields = [name for name in FIELDS if f"\n{name}: " in text]
        lines = None if row.kind == "plan" else 120
        grammar = Grammar(vocabulary, lark(Shape(fields=fields, lyric_lines=lines), *ids), 1)
        for token in answered:
            grammar.consume([token])
        assert grammar.finished, text
        assert set(parse(text)[0]) == set(fields)


def test_prompts_are_the_ones_at_use(written: Chunk, tokenizer: Any) -> None:
    """With the codes put in, a row begins with just what `Prompts` builds."""
    prompts = Prompts(tokenizer)
    numbers = list(range(100, 100 + 50))
    text = "".join(f"<|audio_code_{n}|>" for n in numbers)
    base = tokenizer.convert_tokens_to_ids("<|audio_code_0|>")
    assert base == planner_model.TEXT_TOKENS
    row = next(row for row in written.rows if row.kind == "understand" and row.codes == 50)
    tokens = [t if t >= 0 else base + numbers[-1 - t] for t in map(int, row.tokens)]
    assert tokens[: row.start] == list(prompts.understand(text).conditional)
    song = written.songs[0]
    for seed in range(12):
        for guided in (False, True):
            scribe, again = Scribe(tokenizer, seed), Scribe(tokenizer, seed)
            one, told = again._asked(song)
            lyrics, _ = again._lyrics()
            made = scribe.plan(song, 0)
            both = prompts.plan(told.caption, lyrics, guided=True)
            head = [int(token) for token in made.tokens[: made.start]]
            assert head in (list(both.conditional), list(both.unconditional or ()))
            assert guided or one.duration >= 10


def test_codes_follow_a_block_that_describes_the_piece(written: Chunk) -> None:
    tokenizer = text_tokenizer()
    for row in [row for row in written.rows if row.kind == "codes"][:20]:
        song = written.songs[row.piece]
        head = tokenizer.decode([int(token) for token in row.tokens[: row.start]])
        assert head.endswith("</think><|im_end|>\n")
        # The system's and the user's messages are no block.
        fields = parse(head.rpartition("<think>")[2])[0]
        if fields:
            # The parser passes over what the planner would not choose by itself.
            assert fields.get("duration", row.codes // 5) * 5 == row.codes
            assert row.codes >= 50 or "duration" not in fields
            assert fields.get("keyscale", song.keyscale) == song.keyscale
            near = fields.get("bpm", song.bpm) / song.bpm
            assert any(abs(near / factor - 1) < 0.05 for factor in (0.5, 1, 2))
        assert [int(t) for t in row.tokens[row.start : -1]] == list(range(-1, -1 - row.codes, -1))
    assert any(
        INSTRUMENTAL in tokenizer.decode(row.tokens.clip(0).tolist()) for row in written.rows
    )


def test_chunks_follow_from_their_numbers() -> None:
    first, again = (next(recipe.orders(17, 4, 5)) for _ in range(2))
    assert first == again
    made = [chunk(7, 1, 10.0, 8) for _ in range(2)]
    for one, other in zip(*(part.rows for part in made), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
    lengths = {next(recipe.orders(number, 4, 0)).seconds for number in range(300)}
    assert lengths == {10.0, 30.0, 60.0, 120.0}


def test_a_code_is_the_sum_of_its_pairs() -> None:
    small = Planner(SMALL).initialise(0)
    table = small.table()
    code = 53_217
    digits, rest = [], code
    for level in LEVELS:
        digits.append(rest % level)
        rest //= level
    total, place = torch.zeros(16), 0
    for a, b in planner_model.PAIRS:
        total += small.pairs[place + digits[b] * LEVELS[a] + digits[a]].detach()
        place += LEVELS[a] * LEVELS[b]
    assert place == len(small.pairs) == 627
    assert torch.allclose(table[planner_model.TEXT_TOKENS + code], total, atol=1e-6)


def test_expanded_it_is_the_same_model(tmp_path: Path) -> None:
    """As written to a file and read by transformers, up to half precision."""
    small = Planner(SMALL).initialise(1)
    planner_model.save(small, tmp_path / "planner.safetensors")
    kept = planner_model.load(tmp_path / "planner.safetensors", SMALL)
    tokens = torch.randint(0, planner_model.TEXT_TOKENS + CODES, (2, 9))
    with torch.no_grad():
        table = kept.table()
        wanted = kept(tokens, table) @ table.T
        made = planner_model.expanded(kept, torch.float32)(tokens).logits
    assert torch.allclose(made, wanted, atol=1e-5)


def test_the_planner_that_ships_keeps_to_what_it_is_told() -> None:
    """A few captions, greedily; random weights write no block at all."""
    made = judge.plan_figures(planner_model.load(planner_model.FILE), resolve("cpu"), 6)
    assert made["whole"]["share"] == 1.0
    assert made["bpm"]["share"] >= 0.8
    assert made["words kept"]["share"] >= 0.8


def test_the_loss_is_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_AT_ONCE", 7)
    torch.manual_seed(0)
    hidden, table = torch.randn(20, 8), torch.randn(50, 8)
    labels = torch.randint(0, 50, (20,))
    labels[3] = labels[17] = IGNORED
    gradients = []
    for made in (
        lambda h, t: loss.linear_cross_entropy(h, t, labels),
        lambda h, t: torch.nn.functional.cross_entropy(h @ t.T, labels),
    ):
        leaves = hidden.clone().requires_grad_(), table.clone().requires_grad_()
        value = made(*leaves)
        (3 * value).backward()
        gradients.append((value.detach(), leaves[0].grad, leaves[1].grad))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_batches_hold_each_pieces_own_codes(written: Chunk) -> None:
    codes = [np.arange(50) + 1000 * (n + 1) for n in range(len(written.songs))]
    shelf = Shelf(codes, written.rows, planner_model.TEXT_TOKENS, torch.device("cpu"))
    host, random = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for family in ("codes", "understand", "written"):
        for _ in range(6):
            batch = shelf.draw(host, random, 1500, family=family)
            numbers = batch.tokens - planner_model.TEXT_TOKENS
            for line in numbers:
                inside = line[line >= 0]
                assert bool((inside.diff() == 1).all())
                assert (len(inside) == 0) == (family == "written")
            flat = batch.tokens.flatten()
            known = batch.labels != IGNORED
            # What is to be written stands one place after where it is foretold.
            assert torch.equal(flat[batch.at[known] + 1], batch.labels[known])
            assert batch.coded == (family == "codes")
    disturbed = shelf.draw(host, random, 4000, family="codes", disturbed=0.5)
    known = disturbed.labels != IGNORED
    same = disturbed.tokens.flatten()[disturbed.at[known] + 1] == disturbed.labels[known]
    assert 0.4 < float(same.float().mean()) < 0.9


def test_agreement_sees_a_wrong_block() -> None:
    one = plan(5)
    told = Asked(f"piano, {one.bpm} bpm, in {one.keyscale}", frozenset({"bpm", "keyscale"}))
    right = {"bpm": one.bpm, "keyscale": one.keyscale, "caption": told.caption + ", slow",
             "duration": 20, "language": "unknown", "timesignature": "4"}  # fmt: skip
    wrong = {**right, "bpm": one.bpm + 1, "caption": "noise"}
    made = judge.agreement([one, one], [told, told], [right, wrong])
    assert made["bpm"] == {"share": 0.5, "of": 2}
    assert made["keyscale"]["share"] == 1.0
    assert made["words kept"]["share"] == 0.5
    assert made["whole"]["share"] == 1.0


def test_training_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Chunk
) -> None:
    """Two calls: the second finds weights, moments, material and its place in the schedule."""
    monkeypatch.setattr(recipe, "Planner", lambda shape=None: Planner(SMALL))
    monkeypatch.setattr(recipe, "load", lambda file: planner_model.load(file, SMALL))
    monkeypatch.setattr(recipe, "SHARES", (1.0, 0.0, 0.0, 0.0))
    random = np.random.default_rng(0)

    def coder(policy: Any) -> Any:
        # The encoder has a test of its own below.
        return lambda made: random.integers(0, CODES, (len(made.songs), 50))

    monkeypatch.setattr(recipe, "Coder", coder)
    options = ["--workers", "1", "--chunk", "1", "--material", "0", "--seconds", "0",
               "--reserve", "0", "--tokens", "300", "--fewest", "1"]  # fmt: skip
    runs = []
    for number, start in enumerate(([], ["--start", str(tmp_path / "0")])):
        out = tmp_path / str(number)
        arguments = recipe._parser().parse_args(["--out", str(out), "--device", "cpu", *options,
                                                  *start, "--judged", "1", "--prompts", "1"])  # fmt: skip
        run = recipe._Run(arguments, resolve("cpu"))
        runs.append(run)
        with ThreadPoolExecutor(1) as pool:
            stock, held = run.make(pool)
        before = [p.detach().clone() for p in run.planner.parameters()]
        run.train(stock, held)
        assert any(
            not torch.equal(p, q) for p, q in zip(run.planner.parameters(), before, strict=True)
        )
    state = json.loads((tmp_path / "1" / recipe.STATE_FILE).read_text())
    assert (state["calls"], state["steps"], state["chunks"]) == (2, 2, 2)
    first, second = runs
    for p, q in zip(first.step.moments(), second.step._optimizer.state.values(), strict=True):
        assert p[0].shape == q["exp_avg"].shape
        assert float(q["step"]) == 2.0
    log = (tmp_path / "1" / "log.jsonl").read_text().splitlines()
    plans = [row for row in map(json.loads, log) if row["phase"] == "plans"]
    assert {"whole", "words kept"} <= {row["field"] for row in plans}
    assert {row["of"] for row in plans} == {1}
    names = {file.name for file in (tmp_path / "1").iterdir()}
    assert names == {"planner.safetensors", "weights.safetensors", "moments.safetensors",
                     "state.json", "log.jsonl", "codes-1.safetensors"}  # fmt: skip


def test_pieces_become_the_codes_of_the_built_in_encoder(trained_handler: Any) -> None:
    from acestep.demo.synth import Voices
    from acestep.inference import audio_to_codes

    song = compose(np.random.default_rng(2), 1.0)
    made = recipe.Coder(resolve("cpu"))(Chunk([song]))
    text = audio_to_codes(trained_handler, Voices().render([song])[0])
    assert "".join(f"<|audio_code_{n}|>" for n in made[0]) == text


def test_no_step_waits_for_the_device(
    written: Chunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording cannot: whatever the host reads or sends would be that of the first time."""
    monkeypatch.setattr(recipe, "Planner", lambda shape=None: Planner(SMALL))
    codes = [np.arange(50) for _ in written.songs]
    host, random = np.random.default_rng(0), torch.Generator().manual_seed(0)
    shelf = Shelf(codes, written.rows, planner_model.TEXT_TOKENS, torch.device("cpu"))
    arguments = recipe._parser().parse_args(["--out", str(tmp_path)])
    with simulate.mps(fallback=False) as simulation:
        policy = resolve("mps", dtype="float32")
        run = recipe._Run(arguments, policy)
        for family in ("codes", "understand"):
            batch = shelf.draw(host, random, 600, family=family)
            given = [x.to(policy.device) for x in (batch.tokens, batch.at, batch.labels)]
            given.append(torch.arange(8, device=policy.device))

            def losses(given: list[torch.Tensor] = given, coded: bool = batch.coded) -> Any:
                return run.losses(*given, coded=coded)

            losses()  # makes what later runs find ready, as those before a recording do
            simulation.recorder.clear()
            torch.stack(list(losses().values())).sum().backward()
            assert not simulation.recorder.transfers
            assert sum(simulation.recorder.operators.values()) > 100
        run.planner.to("cpu")
