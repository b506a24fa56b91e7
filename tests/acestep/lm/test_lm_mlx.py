"""The engine `mlx`: token for token what `pt` writes, in few bits, from other threads, to its end."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acestep.device import resolve
from acestep.errors import CancelledError, CheckpointError, GenerationError, RequestError
from acestep.lm import demo, grammar, loading, models, pt_weights
from acestep.lm.backend import CodeJob, TextJob
from acestep.lm.prompts import Prompt, Prompts
from acestep.lm.sampling import Sampling, fold
from acestep.lm.sampling import gumbel as noise

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")
mlx_decoding = pytest.importorskip("acestep.lm.mlx_decoding")
mlx_weights = pytest.importorskip("acestep.lm.mlx_weights")


def untold(done: int, most: int) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 of transformers: several layers, heads in groups, input and output one."""
    made = tmp_path_factory.mktemp("mlx") / "lm"
    demo.build(made, demo.LmShape(64, 2, 4, 2, 16, 128, tied=True), seed=3)
    return made


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    """It in torch and in MLX, float32."""
    made = loading.load("pt", folder, resolve("cpu"))
    return made, loading.load("mlx", folder, resolve("cpu", engine="mlx"))


def prompts_of(engine: Any, guided: bool) -> list[Prompt]:
    """Two of unequal lengths, whose counterparts are unequal too."""
    make = Prompts(engine.tokenizer)
    return [
        make.plan("rain and wind in the night", "la", guided=guided),
        make.plan("a", "la la la", guided=guided),
    ]


SAMPLINGS = {
    "greedy": Sampling(0.0),
    "greedy, guided": Sampling(0.0, guidance=2.0),
    "drawn": Sampling(0.85, top_p=0.9, guidance=2.0),
    "drawn of few": Sampling(1.0, top_k=20, top_p=0.8),
    "penalised": Sampling(0.0, repetition_penalty=1.4, guidance=1.5),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_text_and_codes_are_those_of_torch(pair: tuple[Any, Any], name: str) -> None:
    sampling = SAMPLINGS[name]
    prompts = prompts_of(pair[0], sampling.guided)
    tokens = pair[0].tokens
    shape = grammar.Shape(("bpm", "caption", "keyscale"), {"bpm": 120}, 600, 2, 4)
    rules = grammar.lark(shape, tokens.think_open, tokens.think_close, tokens.end)
    most = grammar.most_tokens(shape)
    text = TextJob(prompts, [1, 2**40 + 2], sampling, rules, tokens.think_close, most)
    codes = CodeJob(prompts, [1, 2**40 + 2], sampling, [2, 4])
    told: list[tuple[int, int]] = []
    assert pair[1].text(text, untold) == pair[0].text(text, untold)
    made = pair[1].codes(codes, lambda *note: told.append(note))
    assert [len(row) for row in made] == [2, 4]
    assert told[-1] == (4, 4)
    assert made == pair[0].codes(codes, untold)


def test_the_built_in_model_writes_the_same(tmp_path: Path) -> None:
    folder = models.find("demo")
    made = [
        loading.load(name, folder, resolve("cpu", engine=engine))
        for name, engine in (("pt", "torch"), ("mlx", "mlx"))
    ]
    tokens, prompts = made[0].tokens, prompts_of(made[0], True)[:1]
    shape = grammar.Shape(("bpm", "keyscale", "language"), {"language": "en"})
    rules = grammar.lark(shape, tokens.think_open, tokens.think_close, tokens.end)
    greedy = Sampling(0.0, guidance=2.0)
    text = TextJob(prompts, [0], greedy, rules, tokens.think_close, 99)
    first, second = ((e.text(text, untold), e.codes(CodeJob(prompts, [0], greedy, [6]), untold))
                     for e in made)  # fmt: skip
    assert first == second


def test_free_text_ends_where_torch_ends_it(pair: tuple[Any, Any]) -> None:
    prompts = prompts_of(pair[0], False)
    job = TextJob(prompts, [0, 0], Sampling(0.0), None, pair[0].tokens.end, 9)
    assert pair[1].text(job, untold) == pair[0].text(job, untold)
    short = TextJob(
        prompts[:1], [0], Sampling(0.0),
        grammar.lark(grammar.Shape(("caption",)), *_tags(pair[0])), pair[0].tokens.think_close, 2,
    )  # fmt: skip
    with pytest.raises(GenerationError, match="did not end its text within 2 tokens"):
        pair[1].text(short, untold)


def _tags(engine: Any) -> tuple[int, int, int]:
    return engine.tokens.think_open, engine.tokens.think_close, engine.tokens.end


def test_an_item_is_the_same_whatever_is_beside_it(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding, counterparts and other items' seeds change nothing; a long prompt goes in parts."""
    engine = pair[1]
    one, other = prompts_of(engine, True)
    monkeypatch.setattr(mlx_decoding, "_READ_AT_ONCE", 50)
    long = Prompt([*one.conditional, *[7, 8, 9] * 20], one.unconditional)
    sampling = Sampling(0.9, guidance=2.0)
    together = engine.codes(CodeJob([long, other], [5, 6], sampling, [4, 5]), untold)
    assert [engine.codes(CodeJob([prompt], [seed], sampling, [count]), untold)[0]
            for prompt, seed, count in ((long, 5, 4), (other, 6, 5))] == together  # fmt: skip
    assert pair[0].codes(CodeJob([long, other], [5, 6], sampling, [4, 5]), untold) == together


def test_few_bits_are_near_and_kept_in_a_folder(
    pair: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    """In eight bits the scores are nearly the same; what is loaded from the folder is exactly so."""
    small = loading.load("mlx", folder, resolve("cpu", engine="mlx", quantization="8"))
    ids = mx.array([[5, 6, 7, 8]])
    exact, near = pair[1].model(ids), small.model(ids)
    assert 0 < float(mx.abs(exact - near).max()) < 0.03 * float(mx.abs(exact).max())
    assert mlx_weights.saved_small(folder, tmp_path / "small", "int8") == tmp_path / "small"
    assert models.stored_bits(tmp_path / "small") == 8
    assert models.stored_bits(folder) is None
    assert mlx_weights.saved_small(folder, tmp_path / "small", "int8") == tmp_path / "small"
    (tmp_path / "empty").mkdir()
    for taken in ("empty", "small"):
        with pytest.raises(RequestError, match="is there and holds no language model in 4 bits"):
            mlx_weights.saved_small(folder, tmp_path / taken, "int4")
    with pytest.raises(RequestError, match="small is in 8 bits already"):
        mlx_weights.saved_small(tmp_path / "small", tmp_path / "again", "int8")
    with pytest.raises(RequestError, match="8 bits of MLX's; use --backend mlx"):
        loading.find(str(tmp_path / "small"), resolve("cpu"))
    assert loading.find(str(tmp_path / "small"), resolve("cpu"), backend="mlx").engine == "mlx"
    again = mlx_weights.load_model(tmp_path / "small", resolve("cpu", engine="mlx"))
    assert mx.array_equal(again(ids), near)
    weights = tmp_path / "small" / "model.safetensors"
    config = weights.with_name("config.json")
    said = json.loads(config.read_text())
    other = said | {"quantization": said["quantization"] | {"bits": 3}}
    config.write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match=r"proj' is not in 3 bits with a scale and an offset"):
        mlx_weights.load_model(tmp_path / "small", resolve("cpu", engine="mlx"))
    config.write_text(json.dumps(said))
    size = weights.stat().st_size
    assert size < 0.35 * (folder / "model.safetensors").stat().st_size
    with pytest.raises(RequestError, match="small is stored in 8 bits; leave out --quantize"):
        mlx_weights.load_model(tmp_path / "small", resolve("cpu", engine="mlx", quantization="4"))
    flat = dict(mx.load(str(weights)))
    flat["model.layers.0.mlp.up_proj.scales"] = mx.array(1.0)
    mx.save_safetensors(str(weights), flat)
    with pytest.raises(CheckpointError, match=r"up_proj' is not in 8 bits"):
        mlx_weights.load_model(tmp_path / "small", resolve("cpu", engine="mlx"))
    job = CodeJob(prompts_of(small, False), [1, 2], Sampling(), [2, 3])
    assert [len(row) for row in small.codes(job, untold)] == [2, 3]
    held = type(small).of(small.model, small.tokenizer, small.tokens, resolve("cpu", engine="mlx"))
    assert held.codes(job, untold) == small.codes(job, untold)
    small.close()
    assert not hasattr(small, "model")


def test_torch_keeps_few_bits_too(folder: Path, tmp_path: Path) -> None:
    """In a folder whose model is equal to the bit to what is made at load."""
    small = tmp_path / "small"
    assert pt_weights.saved_small(folder, small, "int4") == small
    assert pt_weights.saved_small(folder, small, "int4") == small
    with pytest.raises(RequestError, match="and holds no weights in fp8 for the engine 'torch'"):
        pt_weights.saved_small(folder, small, "fp8")
    with pytest.raises(RequestError, match="is in few bits already"):
        pt_weights.saved_small(small, tmp_path / "again", "int4")
    with pytest.raises(RequestError, match="small is held in int4; leave out --quantize"):
        loading.find(str(small), resolve("cpu", quantization="int8"))
    with pytest.raises(RequestError, match="held in int4 for the engine 'torch', and 'mlx' was"):
        loading.find(str(small), resolve("cpu", engine="mlx"))
    with pytest.raises(CheckpointError, match=r"is no language model; name one in it: small"):
        loading.find(str(tmp_path), resolve("cpu"))
    choice = loading.find(str(small), resolve("cpu"))
    assert "int4 weights" in choice.status
    assert models.stored_bits(small) is None
    models.check_memory(small, choice.policy)
    place = torch.device("cpu")
    made = pt_weights.load_model(folder, resolve("cpu", quantization="int4"), place).state_dict()
    read = pt_weights.load_model(small, choice.policy, place).state_dict()
    assert made.keys() == read.keys()
    assert any(name.endswith(".scale") for name in made)
    assert all(torch.equal(value, read[name]) for name, value in made.items())


@pytest.mark.parametrize("bits", ["x", None, [4], 4.0, 7, -4])
def test_bits_that_there_are_not_are_refused(tmp_path: Path, bits: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"bits": bits}}))
    with pytest.raises(CheckpointError, match=r"weights in .* bits; expected one of"):
        models.stored_bits(tmp_path)


def test_the_noise_has_the_bits_of_the_others() -> None:
    seeds = fold([0, 7, 2**63 - 1])
    for step in (0, 1, 2999):
        ours = mlx_decoding.gumbel(mx.array(seeds, mx.uint32)[:, None], step, 64000)
        theirs = noise(torch.tensor(seeds)[:, None], torch.tensor([step]), 64000).numpy()
        np.testing.assert_allclose(np.array(ours), theirs, rtol=2e-5, atol=2e-6)
        assert (np.array(ours).argmax(1) == theirs.argmax(1)).all()


def test_another_thread_may_write_and_stop(pair: tuple[Any, Any]) -> None:
    """As a page's does; what it raises passes through, and the engine goes on afterwards."""
    engine, made = pair[1], []
    job = CodeJob(prompts_of(engine, False)[:1], [1], Sampling(), [26])

    def cancel(done: int, most: int) -> None:
        raise CancelledError("enough")

    def work() -> None:
        with pytest.raises(CancelledError, match="enough"):
            engine.codes(job, cancel)
        made.append(engine.codes(job, untold))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made == [engine.codes(job, untold)]


def test_running_out_of_memory_is_one_line(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = CodeJob([Prompt([5])], [1], Sampling(), [3])
    for line, kind in (
        ("[malloc] Unable to allocate 9 bytes.", GenerationError),
        ("?", RuntimeError),
    ):

        def full(*arguments: Any, line: str = line) -> None:
            raise RuntimeError(line)

        monkeypatch.setattr(mlx_decoding.MlxDecoding, "choose", full)
        with pytest.raises(kind, match=r"MLX ran out of memory on cpu|[?]"):
            pair[1].codes(job, untold)


def test_damaged_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    policy = resolve("cpu", engine="mlx")
    text = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="no weights here"):
        mlx_weights.load_model(tmp_path, policy)
    data = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        mlx_weights.load_model(tmp_path, policy)
    (tmp_path / "model.safetensors").write_bytes(data)
    changed = text.replace('"hidden_size": 64', '"hidden_size": 96')
    assert changed != text
    (tmp_path / "config.json").write_text(changed)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        mlx_weights.load_model(tmp_path, policy)
    (tmp_path / "config.json").write_text(text.replace('"num_attention_heads"', '"heads"'))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        mlx_weights.load_model(tmp_path, policy)


def test_the_backend_is_chosen_with_the_engine_or_by_name() -> None:
    mlx = resolve("cpu", engine="mlx")
    assert loading.choose(None, mlx) == ("mlx", None)
    assert loading.choose("pt", mlx) == ("pt", None)
    with pytest.raises(RequestError, match="'vllm' cannot be used on cpu: the engine is MLX"):
        loading.choose("vllm", mlx)
    found = loading.find("demo", resolve("cpu"), backend="mlx")
    assert (found.engine, found.policy.engine_name) == ("mlx", "mlx-cpu")
    assert loading.find("demo", mlx, backend="pt").policy.engine == "torch"
    small = loading.find("demo", resolve("cpu", engine="mlx", quantization="4"))
    assert (small.engine, small.policy.quantization) == ("mlx", "int4")
    assert small.status.endswith("(float32, int4 weights), backend mlx")


def test_masks_are_words_of_bits() -> None:
    words = np.array([[0b101, -1]], np.int32)
    allowed = np.array(mlx_decoding._allowed(words, 40))
    assert allowed.shape == (1, 40)
    assert allowed[0].nonzero()[0].tolist() == [0, 2, *range(32, 40)]
